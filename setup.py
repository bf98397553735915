"""The compiled kernels, which may be missing: without a compiler numpy computes. All else is in setup.cfg."""

from setuptools import Extension, setup

FOLDER = "goco_mpi/core/objectives/"

setup(
    ext_modules=[
        Extension(
            "goco_mpi.core.objectives._kernels",
            [FOLDER + "_kernels.c"],
            depends=[FOLDER + "_kernels_dense.h", FOLDER + "_kernels_csr.h"],
            extra_compile_args=["-O3", "-g0"],
            py_limited_api=True,
            optional=True,
        )
    ],
    options={"bdist_wheel": {"py_limited_api": "cp311"}},
)
