"""Data sets: IDX (MNIST), .npy, .npz, CSV and Parquet files read into `Data`, and a small MNIST that comes along."""

from __future__ import annotations

import gzip
import math
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .checks import as_numbers
from .streams import BLOCK_BYTES, SPOOL_BYTES, MappedRows, Spool, memory_map
from .tables import load_csv, load_parquet, some

__all__ = ["Data", "load_data", "mnist10k"]

_KINDS = (
    "a directory with IDX files (train-images-idx3-ubyte, ...) or with X.npy and y.npy, "
    "or one .npz, .npy, .csv, .csv.gz, .tsv, .parquet or IDX images file"
)
_IDX = {0x08: ">u1", 0x09: ">i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_MOST_CLASSES = 65_536  # integers 0 <= y < this in an array are class numbers; others are names of classes

Parts = dict[str, Any]  # the arrays found, as they are, by key: "X", "y", "X_test", "y_test"


@dataclass(frozen=True, eq=False)
class Data:
    """A data set: X (n, features) float32, or float64 where the file held such an array, C-contiguous; y int64 labels
    (n,) in 0..C-1, or float targets (n,) or (n, k), or None; a test part likewise, None where there is none.
    `classes` names the C labels; it is None for targets and without labels."""

    X: np.ndarray
    y: np.ndarray | None
    X_test: np.ndarray | None
    y_test: np.ndarray | None
    classes: tuple[str, ...] | None
    name: str


def load_data(path: str | os.PathLike[str], *, target: str | int | None = None, labels: bool = True) -> Data:
    """Read a data set: the kind is told by the name.

    A directory: IDX files under MNIST's names, or X.npy and y.npy, or X_train.npy, y_train.npy, X_test.npy,
    y_test.npy. A file: .npz with the same keys (any case); .npy or IDX images, the labels found beside it
    (X.npy and y.npy, a.npy and a_y.npy or a_labels.npy); .csv, .csv.gz, .tsv with or without a header; .parquet (extra
    `parquet`).

    target: the target column of a CSV or Parquet file, name or index; by default the one called label, target, class or y,
        else the last. Text and integers there are labels (sorted into `classes`), other numbers targets: also 1.0, as what
        is measured or counted may be whole by chance; write 1 for a label.
    labels: False reads also where the labels are missing: y is then None. (A table's last column is then
        a target only if it is named so.)

    uint8 X are divided by 255, to [0, 1]; float64 X are kept, but in tables; others become float32; images are flattened.
    Data larger than memory: a .npy X, and a large X in a .npz that is not compressed, stay on the disk, memory-mapped; a table,
    or X to be converted, goes, if it is over 64 MiB, to a file in the folder for temporary files (TMPDIR), which is
    then mapped and goes when X does. IDX files and y are in memory. What is mapped is not compared with the checksum that
    a .npz keeps of it, for that would be to read all of it.
    FileNotFoundError: no such path. ValueError, TypeError: with the file (and line) and what is expected.
    """
    if not (target is None or isinstance(target, str) or hasattr(target, "__index__")):
        raise TypeError(f"target must be a column's name or index, got {target!r}")
    path = Path(path)
    kind = "/" if path.is_dir() else path.name.lower()
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist; expected {_KINDS}")
    read = load_csv if re.search(r"\.[ct]sv(\.gz)?$", kind) else load_parquet if kind.endswith(".parquet") else None
    if read is not None:
        X, y, classes = read(path, target, labels)
        return Data(X, y, None, None, classes, _name(path))
    if target is not None:
        raise ValueError(f"target={target!r} was given with {path}; it is for .csv, .tsv and .parquet files only")
    if kind == "/":
        return _data(path, *_read_directory(path), labels)
    if kind.endswith(".npz"):
        return _data(path, *_read_npz(path), labels)
    if kind.endswith(".npy"):
        name, found = re.subn(r"(^|_)[xX](?=_|$)", r"\1y", path.stem)
        beside = [f"{name}.npy"] if found else [f"{name}_labels.npy", f"{name}_y.npy"]
        return _data(path, *_read_pair(path, beside, _read_npy, _read_npy), labels)
    if "idx" in kind:
        name = re.sub(r"idx\d", "idx1", path.name.replace("images", "labels")).removesuffix(".gz")
        return _data(path, *_read_pair(path, [name, f"{name}.gz"], _read_images, _read_labels), labels)
    raise ValueError(f"{path} is of no kind that can be read; expected {_KINDS}")


def mnist10k() -> Data:
    """The data set that comes along: MNIST's first 8,000 training and 2,000 test images, (n, 784), 0 to 1."""
    return load_data(Path(__file__).with_name("mnist10k"))


# From the parts that a reader found to Data


def _data(path: Path, parts: Parts, sought: str, labels: bool) -> Data:
    """Judge and convert what was found; `sought` ends the sentence about a missing part."""
    needed = {"X": True, "y": labels, "X_test": "y_test" in parts, "y_test": labels and "X_test" in parts}
    for key, is_needed in needed.items():
        if is_needed and key not in parts:
            mend = "; labels=False reads without labels" if key[0] == "y" else ""
            raise ValueError(f"{path} has no {key}: {sought}{mend}")
    Xs, ys = {}, {}
    for end in ("", "_test"):
        if f"X{end}" in parts:
            Xs[end] = _features(parts[f"X{end}"], f"X{end} of {path}")
        if f"y{end}" in parts:
            ys[end] = _labels(parts[f"y{end}"], len(Xs[end]), f"y{end} of {path}")
    if len({X.shape[1] for X in Xs.values()}) > 1:
        widths = f"{Xs['_test'].shape[1]} columns but X has {Xs[''].shape[1]}"
        raise ValueError(f"X_test of {path} has {widths}; expected the same number")
    coded, classes = _encode(ys)
    return Data(Xs[""], coded.get(""), Xs.get("_test"), coded.get("_test"), classes, _name(path))


def _name(path: Path) -> str:
    return path.resolve().name if path.is_dir() else Path(path.name.removesuffix(".gz")).stem


def _features(X: Any, name: str) -> np.ndarray:
    as_numbers(X, name)
    if X.ndim < 2 or X.size == 0:
        raise ValueError(f"{name} has shape {X.shape}; expected (rows, features) or images, not empty")
    source = memory_map(X)
    if source is None or source.nbytes < SPOOL_BYTES or (X.dtype in (np.float32, np.float64) and X.flags.c_contiguous):
        return _scaled(X).reshape(len(X), -1)
    spool, rows = Spool(), MappedRows(source, X.dtype)
    step = max(1, BLOCK_BYTES * len(X) // source.nbytes)
    for start in range(0, len(X), step):
        block = rows[start : start + step]
        spool.append(_scaled(block).reshape(len(block), -1))
    return spool.array()


def _scaled(X: np.ndarray) -> np.ndarray:
    return _floats(np.divide(X, np.float32(255), dtype=np.float32, order="C") if X.dtype == np.uint8 else X)


def _floats(array: np.ndarray) -> np.ndarray:
    dtype = np.dtype(np.float64 if array.dtype.newbyteorder("=") == np.float64 else np.float32)
    if array.dtype == dtype and array.flags.c_contiguous:
        return array  # a memory map stays one
    return np.ascontiguousarray(array, dtype=dtype)


def _labels(y: Any, n: int, name: str) -> np.ndarray:
    """`y` as found: text (n,), or numbers (n,) or (n, k)."""
    is_text = isinstance(y, np.ndarray) and y.dtype.kind == "U"
    y = y if is_text else as_numbers(y, name)
    if y.dtype.kind != "f" and y.shape[1:] == (1,):
        y = y[:, 0]
    if y.shape[:1] != (n,) or y.ndim > 2 - is_text:
        raise ValueError(f"{name} has shape {y.shape} but X has {n} rows; expected ({n},) or ({n}, k)")
    return np.asarray(y)


def _encode(ys: dict[str, np.ndarray]) -> tuple[dict[str, np.ndarray], tuple[str, ...] | None]:
    """Labels (1-D text, integers, bools) as class numbers, and the classes; targets as floats, and None."""
    kinds = {"labels" if y.ndim == 1 and y.dtype.kind in "biu" else y.dtype.kind for y in ys.values()}
    if kinds == {"labels"}:
        top = max(int(y.max()) for y in ys.values())
        if top < _MOST_CLASSES and min(int(y.min()) for y in ys.values()) >= 0:
            return {key: y.astype(np.int64) for key, y in ys.items()}, tuple(map(str, range(top + 1)))
    if kinds in ({"labels"}, {"U"}):
        columns, classes = _code([y.tolist() for y in ys.values()])
        return dict(zip(ys, columns, strict=True)), classes
    if "U" in kinds:
        raise ValueError("of y and y_test one holds text and one holds numbers; expected both of a kind")
    return {key: _floats(np.array(y)) for key, y in ys.items()}, None  # a copy: a file is mapped


def _code(columns: list[list[Any]]) -> tuple[list[np.ndarray], tuple[str, ...]]:
    """Columns of labels as their positions 0..C-1 among the sorted labels, and those labels' names."""
    names = sorted(set(chain(*columns)))
    codes = {name: code for code, name in enumerate(names)}
    coded = [np.array([codes[value] for value in column], np.int64) for column in columns]
    return coded, tuple(map(str, names))


# Readers: path -> the parts found, and how to say that one is missing


def _pick(names: Collection[str], *wanted: str) -> str | None:
    """The first of `wanted` that is among `names`, as it is spelled there, in upper or lower case."""
    lower = {name.lower(): name for name in names} | {name: name for name in names}
    return next((lower[key] for want in wanted for key in (want, want.lower()) if key in lower), None)


def _pick_parts(names: Collection[str], read: Callable[[str], Any], suffix: str = "") -> Parts:
    part = "_train" if _pick(names, f"X_train{suffix}") else ""
    keys = {"X": f"X{part}", "y": f"y{part}", "X_test": "X_test", "y_test": "y_test"}
    found = {key: _pick(names, name + suffix) for key, name in keys.items()}
    return {key: read(name) for key, name in found.items() if name is not None}


def _read_directory(path: Path) -> tuple[Parts, str]:
    names = sorted(entry.name for entry in path.iterdir() if entry.is_file())
    parts: Parts = {}
    for part, end in (("train", ""), ("t10k", "_test")):
        for stem, key, read in (("images", "X", _read_images), ("labels", "y", _read_labels)):
            idx = f"idx{3 if key == 'X' else 1}-ubyte"
            name = _pick(names, *(f"{part}-{stem}{dot}{idx}{gz}" for dot in "-." for gz in ("", ".gz")))
            if name is not None:
                parts[key + end] = read(path / name)
    parts = parts or _pick_parts(names, lambda name: _read_npy(path / name), ".npy")
    npy = "X.npy and y.npy, or X_train.npy, y_train.npy, X_test.npy, y_test.npy"
    idx = "train-images-idx3-ubyte, train-labels-idx1-ubyte and t10k-... (.gz or not)"
    return parts, f"it holds {some(names)}; expected {npy}, or {idx}"


def _read_pair(
    path: Path, beside: list[str], read_X: Callable[[Path], Any], read_y: Callable[[Path], Any]
) -> tuple[Parts, str]:
    parts = {"X": read_X(path)}
    name = _pick({entry.name for entry in path.parent.iterdir()} - {path.name}, *beside)
    if name is not None:
        parts["y"] = read_y(path.parent / name)
    return parts, f"expected {' or '.join(beside)} beside it"


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """The file; whatever numpy and zipfile find wrong in it (be it a bad seek) is raised as a ValueError."""
    with path.open("rb") as file:
        try:
            yield file
        except Exception as error:
            mend = "expected numbers saved with np.save or np.savez; pickled objects are never loaded"
            raise ValueError(f"{path} cannot be read ({error}): {mend}") from error


def _read_npy(path: Path) -> np.ndarray:
    with _opened(path):
        return np.lib.format.open_memmap(path, mode="r")


def _read_npz(path: Path) -> tuple[Parts, str]:
    with _opened(path) as file, np.load(file, allow_pickle=False) as archive:
        names = archive.files
        parts = _pick_parts(names, lambda name: archive[name] if (X := _mapped_member(path, name)) is None else X)
    return (
        parts,
        f"it holds {some(names)}; expected the keys X and y, or X_train, y_train, X_test and y_test",
    )


def _mapped_member(path: Path, name: str) -> np.ndarray | None:
    """A large array of a .npz file that is stored as it is, mapped; None for the others, which are better read."""
    with zipfile.ZipFile(path) as archive, path.open("rb") as file:
        member = next((info for info in archive.infolist() if info.filename == f"{name}.npy"), None)
        if member is None or member.compress_type != zipfile.ZIP_STORED or member.file_size < SPOOL_BYTES:
            return None
        file.seek(member.header_offset)
        name_length, extra_length = struct.unpack("<26x2H", file.read(30))
        file.seek(member.header_offset + 30 + name_length + extra_length)
        version = np.lib.format.read_magic(file)
        read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}.get(version)
        if read is None:
            return None
        shape, by_columns, dtype = read(file)
        if dtype.hasobject:
            return None
        return np.memmap(path, dtype, "r", file.tell(), shape, "F" if by_columns else "C")


def _read_bytes(path: Path) -> bytes:
    """A file's bytes, unzipped where they are gzip, whatever the name says."""
    raw = path.read_bytes()
    try:
        return gzip.decompress(raw) if raw[:2] == b"\x1f\x8b" else raw
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise ValueError(f"{path} is a truncated or corrupt gzip file ({error}): fetch it again") from error


def _read_images(path: Path) -> np.ndarray:
    return _read_idx(path, "images, 2-D or more", lambda ndim: ndim >= 2)


def _read_labels(path: Path) -> np.ndarray:
    return _read_idx(path, "labels, 1-D", lambda ndim: ndim == 1)


def _read_idx(path: Path, what: str, is_right: Callable[[int], bool]) -> np.ndarray:
    """The array of an IDX file: 00 00 type ndim, ndim sizes (big-endian uint32), the values (big-endian)."""
    raw = _read_bytes(path)
    magic = raw[:4].hex(" ") or "nothing"
    if len(raw) < 4 or raw[:2] != b"\0\0" or raw[2] not in _IDX:
        raise ValueError(f"{path} is no IDX file: it begins with {magic}; expected, say, 00 00 08 03")
    if not is_right(raw[3]):
        raise ValueError(f"{path} holds a {raw[3]}-D array (magic number {magic}); expected {what}")
    start = 4 + 4 * raw[3]
    shape = tuple(int.from_bytes(raw[i : i + 4], "big") for i in range(4, start, 4))
    dtype = np.dtype(_IDX[raw[2]])
    promised = start + math.prod(shape) * dtype.itemsize
    if len(raw) < start or len(raw) != promised:
        size = f"{promised} bytes, shape {shape}," if len(raw) >= start else f"a header of {start} bytes"
        raise ValueError(f"{path} promises {size} but holds {len(raw)} bytes, it is corrupt: fetch it again")
    return np.frombuffer(raw, dtype, offset=start).reshape(shape)
