"""Examples that are not in memory as a whole: on disk or sparse, read and made dense some rows at a time.

What arrives in pieces (batches, the row groups of a Parquet file, the lines of a CSV file) goes through a Spool once, and is
then rows on disk like any other: so a training takes the same steps, to the bit, wherever its data come from.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

from .checks import as_matrix, as_numbers, check_matrix

BLOCK_BYTES = 1 << 24  # of dense rows: what is looked at at a time
MAPPED_ROWS = 16  # that are taken of a map at a time: each may bring 2 MiB of its file, a large page, with it
SPOOL_BYTES = 1 << 26  # how much a Spool keeps in memory

Array = np.ndarray[Any, Any]


class Rows:
    """A matrix (rows, columns) of `dtype` of which some rows at a time are in memory: rows[start:end], rows[[7, 3]]."""

    ndim = 2
    at_once = 1024  # rows that are taken

    def __init__(self, source: Any, dtype: npt.DTypeLike) -> None:
        self.source, self.shape, self.dtype = source, source.shape, np.dtype(dtype)
        self.nbytes = self.shape[0] * self.shape[1] * self.dtype.itemsize  # as a dense array

    def __len__(self) -> int:
        return int(self.shape[0])

    def __getitem__(self, index: Any) -> Array:
        rows = np.require(self._dense(index), self.dtype, ["C", "A", "O"])  # a copy: what was mapped is let go
        self._release()
        return rows

    def take(self, order: Array, out: Array) -> None:
        """out[k] = self[order[k]]"""
        step = self.at_once
        for start in range(0, len(order), step):
            out[start : start + step] = self._dense(order[start : start + step])
            self._release()

    def blocks(self) -> Iterable[tuple[int, Array]]:
        """All rows in order, with the number of the first one of each block, as the source has them."""
        step = max(1, BLOCK_BYTES * len(self) // self.nbytes)
        for start in range(0, len(self), step):
            yield start, self._dense(slice(start, start + step))
            self._release()

    def _dense(self, index: Any) -> Array:
        return self.source[index].toarray()  # type: ignore[no-any-return]  # of a sparse matrix

    def _release(self) -> None:
        """Nothing is mapped."""


class MappedRows(Rows):
    """Of a file that NumPy has mapped into memory.  Its pages are let go after use, so that they do not add up."""

    def __init__(self, source: np.memmap[Any, Any], dtype: npt.DTypeLike) -> None:
        super().__init__(np.asarray(source), dtype)
        pages = source._mmap  # type: ignore[attr-defined]
        if source.nbytes > SPOOL_BYTES:
            self.at_once = MAPPED_ROWS
        self.pages = pages if source.mode != "c" and hasattr(pages, "madvise") else None  # those of "c" may have been changed

    def _dense(self, index: Any) -> Array:
        return self.source[index]  # type: ignore[no-any-return]

    def _release(self) -> None:
        if self.pages is not None:
            self.pages.madvise(mmap.MADV_DONTNEED)


class Part(Rows):
    """Some rows of others, in an order of their own."""

    def __init__(self, rows: Rows, order: Array) -> None:
        super().__init__(rows, rows.dtype)
        self.at_once = rows.at_once
        self.order, self.shape = order, (len(order), rows.shape[1])
        self.nbytes = self.nbytes // len(rows) * len(order)

    def _dense(self, index: Any) -> Array:
        return self.source._dense(self.order[index])  # type: ignore[no-any-return]

    def _release(self) -> None:
        self.source._release()


def as_rows(X: Any, *, dtype: npt.DTypeLike, width: int | None = None, name: str = "X") -> Rows | None:
    """X as checked Rows if it is a memory map or a matrix of scipy.sparse, or has been checked; None if it is anything else.

    Errors are those of checks.as_matrix, to which every block of rows goes.
    """
    if isinstance(X, Rows):
        check_matrix(X.shape, width, name)
        return X
    if is_sparse(X):
        if X.dtype.kind not in "biuf":
            raise TypeError(f"{name} is a sparse matrix of {X.dtype}; expected bools, integers or floats")
        check_matrix(X.shape, width, name)
        rows = Rows(X.tocsr(), dtype)  # entries that are there twice are added
    elif (source := memory_map(X)) is not None:
        as_numbers(source[:0], name)
        check_matrix(source.shape, width, name)
        rows = MappedRows(source, dtype)
    else:
        return None
    for start, block in rows.blocks():
        as_matrix(block, dtype=dtype, name=name, first_row=start)
    return rows


def is_sparse(X: Any) -> bool:
    return hasattr(X, "tocsr") and hasattr(X, "nnz")


def memory_map(X: Any) -> np.memmap[Any, Any] | None:
    """X as a memmap, if it is one or a view of one."""
    base = X
    while isinstance(base, np.ndarray):
        if isinstance(base, np.memmap) and base._mmap is not None:  # type: ignore[attr-defined]
            view = np.asarray(X).view(np.memmap)
            view._mmap, view.mode = base._mmap, base.mode  # type: ignore[attr-defined]
            return view
        base = base.base
    return None


class Spool:
    """Rows that arrive in pieces: in memory while they are few, then in a file without a name that goes when its array does."""

    def __init__(self) -> None:
        self.pieces: list[Array] = []
        self.file: Any = None
        self.rows = 0

    def __del__(self) -> None:
        if self.file is not None:
            self.file.close()

    def append(self, rows: Array) -> None:
        """Take some rows, all calls with the same columns and dtype.  OSError: the folder for temporary files is full."""
        self.rows += len(rows)
        self.pieces.append(rows)
        if self.file is not None or sum(piece.nbytes for piece in self.pieces) > SPOOL_BYTES:
            try:
                self.file = self.file or tempfile.TemporaryFile()  # noqa: SIM115  it lives as long as its array
                for piece in self.pieces:
                    self.file.write(np.ascontiguousarray(piece).data)
                self.file.flush()
            except OSError as error:
                folder = tempfile.gettempdir()
                raise OSError(
                    f"{folder} has no room for the data ({error}); the variable TMPDIR names another folder"
                ) from error
            self.shape, self.dtype = rows.shape[1:], rows.dtype
            self.pieces.clear()

    def array(self) -> Array:
        if self.file is None:
            return self.pieces[0] if len(self.pieces) == 1 else np.concatenate(self.pieces)
        return np.memmap(self.file, self.dtype, "r", shape=(self.rows, *self.shape))


def gathered(
    batches: Iterable[tuple[Any, Any]], *, dtype: npt.DTypeLike, width: int | None = None,
    on_host: Callable[[Any, str], Any] = lambda array, name: array,
) -> tuple[Array, Array]:  # fmt: skip
    """(X, y) of an iterable of batches (X, y) of any sizes: their rows in one array each, X on disk if it is large.

    on_host(array, name) brings a part of a batch to the host.
    Errors name the batch: those of checks.as_matrix, and ValueError if there is none, or one is no pair.
    """
    X, y = Spool(), list[Array]()
    for number, batch in enumerate(batches):
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise ValueError(f"batch {number} is a {type(batch).__name__}; expected a pair (X, y)")
        name = f"of batch {number}"
        part, targets = on_host(batch[0], "X"), on_host(batch[1], "y")
        rows = as_rows(part, dtype=dtype, width=width, name=f"X {name}")
        block = rows[:] if rows is not None else as_matrix(part, dtype=dtype, width=width, name=f"X {name}").copy()
        targets, width = as_numbers(targets, f"y {name}").copy(), block.shape[1]
        if targets.shape[:1] != (len(block),):
            raise ValueError(f"y {name} has shape {targets.shape}, but X has {len(block)} rows; expected one for each")
        if y and targets.shape[1:] != y[0].shape[1:]:
            raise ValueError(
                f"y {name} has shape {targets.shape}, that of the first batch {y[0].shape}; expected the same columns"
            )
        X.append(block)
        y.append(targets)
    if not y:
        raise ValueError("there is no batch; expected an iterable of pairs (X, y)")
    return X.array(), np.concatenate(y)
