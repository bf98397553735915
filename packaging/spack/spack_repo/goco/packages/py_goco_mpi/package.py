from spack_repo.builtin.build_systems.python import PythonPackage

from spack.package import *


class PyGocoMpi(PythonPackage):
    """Gossip-based decentralized learning with gradient coding on MPI."""

    homepage = "https://arxiv.org/abs/2402.04193"

    license("MIT")

    # Of a clone: spack develop --path "$PWD" py-goco-mpi@0.1.0
    version("0.1.0")

    variant("report", default=True, description="Pictures and pages of finished runs")

    with default_args(type="build"):
        depends_on("c")  # the kernels of gradients
        depends_on("py-setuptools@69:")

    with default_args(type=("build", "run")):
        depends_on("python@3.11:")
        depends_on("py-mpi4py@4.1:")
        depends_on("py-msgspec@0.19:")
        depends_on("py-networkx@3.2:")
        depends_on("py-numpy@1.26:")
        depends_on("py-rich@13:")
        depends_on("py-scikit-learn@1.4:")
        depends_on("py-scipy@1.11:")
        depends_on("py-threadpoolctl@3.1:")
        depends_on("py-jinja2@3.1:", when="+report")
        depends_on("py-matplotlib@3.8:", when="+report")

    # The kernels are optional to setup.py: a compiler that fails is seen here alone.
    import_modules = ["goco_mpi", "goco_mpi.cli", "goco_mpi.core.objectives._kernels"]
