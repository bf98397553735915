"""The same samples written in every format that there is a reader of."""

import h5py
import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import scipy.sparse as sp
from crews import in_crew

from goco_mpi.data.readers import open_source
from goco_mpi.schema import DataConfig


def npy(directory, features, targets, name="x.npy"):
    np.save(directory / name, features)
    np.save(directory / "y.npy", targets)
    return {"source": str(directory / name), "targets": str(directory / "y.npy")}


def npy_in_columns(directory, features, targets):
    return npy(directory, np.asfortranarray(features), targets, "columns.npy")


def npz(directory, features, targets):
    np.savez(directory / "data.npz", features=features, targets=targets)
    return {"source": str(directory / "data.npz")}


def npz_compressed(directory, features, targets):
    np.savez_compressed(directory / "small.npz", features=features, targets=targets)
    return {"source": str(directory / "small.npz")}


def csr_arrays(features):
    matrix = sp.csr_array(features)
    return {"data": matrix.data, "indices": matrix.indices, "indptr": matrix.indptr, "shape": np.array(matrix.shape)}


def npz_csr(directory, features, targets):
    np.savez(directory / "csr.npz", targets=targets, format=b"csr", **csr_arrays(features))
    return {"source": str(directory / "csr.npz")}


def npz_csr_compressed(directory, features, targets):
    np.savez_compressed(directory / "small_csr.npz", targets=targets, format="csr", **csr_arrays(features))
    return {"source": str(directory / "small_csr.npz")}


def hdf5(directory, features, targets):
    with h5py.File(directory / "data.h5", "w") as file:
        file["features"], file["targets"] = features, targets
    return {"source": str(directory / "data.h5")}


def hdf5_in_chunks(directory, features, targets):
    with h5py.File(directory / "chunks.hdf5", "w") as file:
        chunks = (min(16, len(features)), features.shape[1])
        file.create_dataset("deep/x", data=features, chunks=chunks, compression="gzip")
        file.create_dataset("y", data=targets)
    return {"source": str(directory / "chunks.hdf5"), "features": "deep/x", "target_column": "y"}


def hdf5_csr(directory, features, targets):
    with h5py.File(directory / "csr.h5", "w") as file:
        arrays = csr_arrays(features)
        group = file.create_group("features")
        group.attrs["shape"] = arrays.pop("shape")
        for name, array in arrays.items():
            group[name] = array
        file["targets"] = targets
    return {"source": str(directory / "csr.h5")}


def svmlight(directory, features, targets):
    # Not by scikit-learn, which writes no NaN.
    lines = [
        " ".join([repr(float(target)), *(f"{j}:{float(row[j])!r}" for j in np.flatnonzero(row))])
        for row, target in zip(features, targets, strict=True)
    ]
    (directory / "data.svm").write_text("\n".join(lines) + "\n")
    return {"source": str(directory / "data.svm")}


def table(features, targets):
    columns = {f"x{j}": features[:, j] for j in range(features.shape[1])}
    return pa.table({"target": targets, **columns})


def parquet(directory, features, targets):
    pa.parquet.write_table(table(features, targets), directory / "data.parquet", row_group_size=16)
    return {"source": str(directory / "data.parquet")}


def csv(directory, features, targets):
    pa.csv.write_csv(table(features, targets), directory / "data.csv")
    return {"source": str(directory / "data.csv")}


DENSE = (npy, npy_in_columns, npz, npz_compressed, hdf5, hdf5_in_chunks, parquet, csv)
SPARSE = (npz_csr, npz_csr_compressed, hdf5_csr, svmlight)
FORMATS = DENSE + SPARSE


def dense(matrix):
    return matrix.toarray() if sp.issparse(matrix) else matrix


def opened(size, **options):
    """Return the source as each member of a crew has it."""
    return in_crew(size, lambda crew: open_source(DataConfig(**options), 0, crew))
