"""A file that is read in places, by us or by a library, and how much of it was."""

from __future__ import annotations

import importlib
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
from numpy.typing import NDArray

from goco_mpi.errors import InputError


class InputFile(io.RawIOBase):
    """A file open for reading that counts the bytes read from it.

    Parameters
    ----------
    path : str
    parameter : str
        The key of the experiment file that names it, for messages.

    Attributes
    ----------
    called : str
        The parameter and the path, as messages begin.
    size : int
        Of the file when it was opened, in bytes.
    bytes_read : int

    Raises
    ------
    InputError
        If it cannot be opened.
    """

    def __init__(self, path: str, parameter: str = "data.source") -> None:
        super().__init__()
        self.called = f"{parameter} {path!r}"
        self.bytes_read = 0
        self._place = 0
        self._descriptor: int | None = None
        try:
            self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            self.size = os.fstat(self._descriptor).st_size
        except OSError as error:
            self.close()
            raise InputError(f"{self.called} cannot be read: {error.strerror or error}.") from None

    def read_at(self, offset: int, out: NDArray[Any]) -> None:
        """Fill a contiguous array with the bytes from ``offset`` on.

        Raises
        ------
        InputError
            If they cannot be read, or the file ends before.
        """
        view = out.reshape(-1).view(np.uint8).data
        done = 0
        while done < len(view):
            try:
                # One read moves at most 2 GiB, and may be cut short by a signal.
                n = os.preadv(self.fileno(), [view[done : done + 2**30]], offset + done)
            except OSError as error:
                raise InputError(f"{self.called} cannot be read: {error.strerror or error}.") from None
            if n == 0:
                raise InputError(
                    f"{self.called} ends at byte {offset + done}, where {len(view) - done} more should be: "
                    "it was truncated, or changes while it is read."
                )
            done += n
            self.bytes_read += n

    # What follows is the part of a file object that numpy, zipfile, h5py and pyarrow ask for.

    def fileno(self) -> int:
        """Return the descriptor."""
        if self._descriptor is None:
            raise ValueError("the file is closed")
        return self._descriptor

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return where the next read begins."""
        return self._place

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set where the next read begins."""
        self._place = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self.size}[whence]
        if self._place < 0:  # zipfile looks for the end of files shorter than that
            self._place -= offset
            raise OSError("a place before the beginning of the file")
        return self._place

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer of bytes and return how many there were: fewer only where the file ended when opened.

        Raises
        ------
        InputError
            As `read_at` does: libraries take other errors for an answer, or for zeros.
        """
        n = min(len(buffer), max(0, self.size - self._place))
        if n:
            self.read_at(self._place, np.frombuffer(buffer, np.uint8, n))
            self._place += n
        return n

    def close(self) -> None:
        """Close it."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
        super().close()


def needs(module: str, extra: str, source: str) -> Any:
    """Import a library that not every installation has.

    Raises
    ------
    InputError
        If it is not there.
    """
    try:
        return importlib.import_module(module)
    except ImportError:
        raise InputError(
            f"data.source {source!r} needs {module}, which is not installed: pip install 'goco-mpi[{extra}]'."
        ) from None


@contextmanager
def refusing(what: str) -> Iterator[None]:
    """Turn whatever a library raises over a file's content into an `InputError` that begins with ``what``.

    Fed with damaged bytes they raise nearly anything.
    """
    try:
        yield
    except InputError:
        raise
    except Exception as error:
        said = (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
        raise InputError(f"{what}: {said}.") from None
