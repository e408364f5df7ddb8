"""The one place where the caller's arrays are judged.

Every function returns what the rest of the library may take for granted (dtype, shape, C order, finite
values) or raises ValueError or TypeError with one sentence: what was given, what is expected, how to mend it.
An array that is already right is returned without a copy.  An array on a GPU (as Backend.adopt gives it) is judged there:
NumPy's functions hand CuPy's arrays to CuPy, and only single numbers come to the host.
"""

from __future__ import annotations

import difflib
import math
import numbers
import sys
from collections.abc import Iterable
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "amount", "as_labels", "as_matrix", "as_numbers", "as_targets", "as_weights", "check_memory", "count", "nearest",
    "on_gpu", "readable_bytes",
]  # fmt: skip

MOST_BYTES = 4 << 30  # that an array for looking at may take

_MEND = {  # dtype kind -> what it holds, how to make numbers of it
    "c": ("complex numbers", "pass the real and the imaginary parts as columns of their own"),
    "M": ("dates", "convert them to numbers, for example to days since a first day"),
    "m": ("time spans", "divide them by a unit, for example np.timedelta64(1, 's')"),
    "V": ("records", "pass their fields as the columns of a plain array"),
    "O": ("Python objects", "convert them with .astype(np.float32)"),
}
_DLPACK_CUDA = (2, 13)  # the kinds of devices whose memory is a GPU's, or managed by it
_TEXT = ("text", "code it as numbers, for example with np.unique(..., return_inverse=True)")


def nearest(name: object, choices: Iterable[str], what: str) -> str:
    """Return `name`, one of `choices`. ValueError: unknown, the nearest is named. TypeError: no string."""
    known = list(choices)
    if not isinstance(name, str):
        given = f"{name!r} ({type(name).__name__})"
        raise TypeError(f"{what} must be a string, got {given}. Known: {', '.join(known)}")
    if name in known:
        return name
    lower = {choice.lower(): choice for choice in known}
    near = difflib.get_close_matches(name.strip().lower(), lower, n=1)
    guess = f"; did you mean {lower[near[0]]!r}?" if near else "."
    raise ValueError(f"unknown {what} {name!r}{guess} Known: {', '.join(known)}")


def amount(name: str, value: Any) -> float:
    """Return `value`, a finite number of 0 or more. ValueError: it is something else."""
    if not isinstance(value, (int, float, np.number)) or isinstance(value, bool) or not math.isfinite(value) or value < 0:
        raise ValueError(f"{name} is {value!r}; expected a finite number, 0 or more")
    return float(value)


def count(name: str, value: Any) -> int:
    """Return `value`, a positive integer. ValueError: it is something else."""
    if not isinstance(value, (int, np.integer)) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} is {value!r}; expected a positive integer")
    return int(value)


def on_gpu(value: object) -> bool:
    """Whether an array is in the memory of an NVIDIA GPU, whosever it is: CuPy's, PyTorch's, JAX's, Numba's."""
    if isinstance(value, np.ndarray):
        return False
    if hasattr(value, "__dlpack_device__"):
        try:
            return int(value.__dlpack_device__()[0]) in _DLPACK_CUDA
        except (BufferError, RuntimeError, TypeError, ValueError):  # neither here nor there
            return False
    return hasattr(value, "__cuda_array_interface__")


def as_given(result: Any, given: Any) -> Any:
    """A result on the GPU as an array of the library that `given` is of, if it has a from_dlpack; without a copy."""
    if not on_gpu(result) or type(result) is type(given):
        return result
    named = sys.modules.get(type(given).__module__.partition(".")[0])  # torch, whose tensors name no namespace
    library: Any = given.__array_namespace__() if hasattr(given, "__array_namespace__") else named
    return library.from_dlpack(result) if hasattr(library, "from_dlpack") else result


def as_numbers(value: Any, name: str) -> np.ndarray:
    """Return `value` (list, array, pandas or polars frame, anything with __array__) as an array of bools,
    integers or floats, of any shape and layout.

    TypeError: a sparse matrix, any other dtype. ValueError: masked entries, ragged rows.
    """
    if type(value) is np.ndarray and value.dtype.kind in "biuf":
        return value  # what follows takes a while beside a step of a small network
    if hasattr(value, "toarray") and hasattr(value, "nnz"):
        raise TypeError(f"{name} is a sparse matrix; expected a dense array: pass {name}.toarray()")
    if isinstance(value, np.ma.MaskedArray) and np.ma.is_masked(value):
        raise ValueError(f"{name} has masked entries; expected numbers only: pass {name}.filled(value)")
    try:
        array = value if on_gpu(value) else np.asarray(value)
        if array.dtype == object and hasattr(value, "to_numpy") and all(map(_is_real, array.flat)):
            array = array.astype(np.float64)  # a frame with columns of several dtypes, say bool and float
    except (TypeError, ValueError, OverflowError, RuntimeError) as error:
        why = str(error).split("\n")[0].split(". ")[0].rstrip(".") or type(error).__name__
        raise ValueError(f"{name} is no array of numbers ({why}); expected rows of equal length") from error
    if array.dtype.kind in "biuf":
        return array
    if array.dtype == object and array.ndim == 0:
        raise TypeError(f"{name} is of type {type(value).__name__}; expected an array of numbers")
    what, mend = _MEND.get(array.dtype.kind, _TEXT)
    for index, entry in np.ndenumerate(array) if array.dtype == object else ():
        if not _is_real(entry):
            what += f", {_at(name, index)} is {entry!r} ({type(entry).__name__})"
            mend = _TEXT[1] if isinstance(entry, str) else "replace such entries by numbers"
            break
    raise TypeError(f"{name} holds {what}, dtype {array.dtype}; expected bools, integers or floats: {mend}")


def as_matrix(X: Any, *, dtype: npt.DTypeLike, width: int | None = None, name: str = "X", first_row: int = 0) -> np.ndarray:
    """Return `X` as a C-contiguous (rows, columns) array of `dtype` (np.float32 or np.float64), all finite.

    At least one row and one column; `width`, where given, is the number of columns, and `first_row` what errors count from.
    TypeError: see `as_numbers`. ValueError: the shape, a nan or an infinity (the first one is named), a value
    too large for `dtype`.
    """
    array = as_numbers(X, name)
    check_matrix(array.shape, width, name)
    return _finite(array, dtype, name, first_row)


def check_matrix(shape: tuple[int, ...], width: int | None, name: str) -> None:
    """Raise ValueError unless it is the shape of a matrix with a row at least, and `width` columns where that is given."""
    if len(shape) != 2:
        mend = (
            f"a single number is {name} = [[number]]",
            f"use {name}.reshape(1, -1) for one row or {name}.reshape(-1, 1) for one column",
            f"use {name}.reshape(len({name}), -1)",
        )[min(len(shape), 2)]
        raise ValueError(f"{name} has shape {shape}; expected 2-D (rows, columns): {mend}")
    if 0 in shape:
        raise ValueError(f"{name} has shape {shape}; expected at least one row and one column")
    if width is not None and shape[1] != width:
        raise ValueError(f"{name} has {shape[1]} columns (shape {shape}); expected {width}")


def as_labels(y: Any, *, n: int, classes: int, name: str = "y") -> np.ndarray:
    """Return `y`, (n,) or (n, 1) integers (or floats of integer value), as contiguous (n,) int64.

    TypeError: see `as_numbers`. ValueError: the shape, the length, the first value not in 0..classes-1.
    """
    array = _column(as_numbers(y, name), n, name)
    if array.dtype.kind in "iu" and n and array.min() >= 0 and array.max() < classes:
        return _plain(array, np.int64)
    with np.errstate(all="ignore"):
        good = (array >= 0) & (array < classes)  # False for nan
        if array.dtype.kind == "f":
            good &= array == np.floor(array)
    if not good.all():
        first = int(good.argmin())
        raise ValueError(f"{name}[{first}] is {array[first]}; expected integer labels in 0..{classes - 1}")
    return _plain(array, np.int64)


def as_targets(y: Any, *, n: int, width: int, dtype: npt.DTypeLike, name: str = "y") -> np.ndarray:
    """Return real targets `y`, (n, width) or, for width 1, (n,), as (n, width). Errors: see `as_matrix`."""
    array = as_numbers(y, name)
    if array.shape == (n,) and width == 1:
        return _finite(array, dtype, name).reshape(n, 1)
    if array.ndim != 2 or array.shape[1] != width:
        also = f" or ({n},)" if width == 1 else ""
        raise ValueError(f"{name} has shape {array.shape}; expected ({n}, {width}){also}, as X has {n} rows")
    if len(array) != n:
        raise ValueError(f"{name} has {len(array)} rows but X has {n} rows; expected one for each")
    return _finite(array, dtype, name)


def as_weights(w: Any, *, n: int, dtype: npt.DTypeLike, name: str = "sample_weight") -> np.ndarray:
    """Return weights `w`, (n,) or (n, 1), as contiguous (n,) of `dtype`: finite, >= 0, not all zero.

    TypeError: see `as_numbers`. ValueError: the shape, the length, the first bad value, zero everywhere.
    """
    array = _finite(_column(as_numbers(w, name), n, name), dtype, name)
    if (array < 0).any():
        first = int((array < 0).argmax())
        raise ValueError(f"{name}[{first}] is {array[first]}; expected weights of 0 or more")
    if not array.any():
        raise ValueError(f"{name} is zero everywhere (as {array.dtype}); expected a positive weight")
    return array


def check_memory(wanted: int, what: str, instead: str) -> None:
    """MemoryError, before any work: `what` would need `wanted` bytes, more than MOST_BYTES; `instead` mends it."""
    if wanted > MOST_BYTES:
        needed, most = readable_bytes(wanted), readable_bytes(MOST_BYTES)
        raise MemoryError(f"{what} would need {needed}; at most {most} are allowed: {instead}")


def readable_bytes(count: float) -> str:
    """A number of bytes, for people."""
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def _column(array: np.ndarray, n: int, name: str) -> np.ndarray:
    """An (n,) view of (n,) or (n, 1)."""
    if array.ndim == 2 and array.shape[1] == 1:
        array = array[:, 0]
    if array.ndim != 1:
        mend = f": of one-hot rows take {name}.argmax(axis=1)" if array.ndim == 2 and name == "y" else ""
        raise ValueError(f"{name} has shape {array.shape}; expected ({n},), as X has {n} rows{mend}")
    if len(array) != n:
        raise ValueError(f"{name} has {len(array)} entries but X has {n} rows; expected one for each")
    return array


def _finite(array: np.ndarray, dtype: npt.DTypeLike, name: str, first_row: int = 0) -> np.ndarray:
    """`array` as `_plain` gives it; its extremes, nan if there is one, show with no temporary that all is finite."""
    out = _plain(array, dtype)
    if math.isfinite(out.max()) and math.isfinite(out.min()):
        return out
    finite = np.isfinite(out)
    first = np.unravel_index(int(finite.argmin()), finite.shape)
    given = array[first]  # before the conversion
    where = _at(name, (first[0] + first_row, *first[1:]))
    if not np.isfinite(given):
        raise ValueError(f"{where} is {given!s}; expected finite numbers: fill in or drop such rows")
    mend = 'scale it, or use dtype="float64"' if out.dtype == np.float32 else "scale it"
    raise ValueError(f"{where} is {given!s}, too large for {out.dtype}: {mend}")


def _plain(array: Any, dtype: npt.DTypeLike) -> np.ndarray:
    """`array` as C-contiguous, aligned, native `dtype`."""
    if type(array) is np.ndarray and array.dtype == dtype and array.flags.carray:
        return array  # sooner than require sees it: a step of a small network takes some 100 microseconds
    with np.errstate(all="ignore"):  # what is too large becomes infinite
        return array.astype(dtype, order="C", copy=False) if on_gpu(array) else np.require(array, dtype, ["C", "A"])


def _at(name: str, index: Iterable[Any]) -> str:
    return f"{name}[{', '.join(str(int(i)) for i in index)}]"


def _is_real(entry: object) -> bool:
    return isinstance(entry, (numbers.Real, np.bool_))
