"""Contract of bpgpu.data: what is read from which file, and what is said about files that cannot be read."""

from __future__ import annotations

import csv
import gzip
import io
import math
import re
import struct
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bpgpu import data as data_module
from bpgpu import streams
from bpgpu.data import Data, load_data, mnist10k

f4, f8 = np.float32, np.float64
MNIST = Path(__file__).resolve().parents[2] / "shared" / "data" / "mnist"
IDX_TYPES = {"u1": 0x08, "i1": 0x09, "i2": 0x0B, "i4": 0x0C, "f4": 0x0D, "f8": 0x0E}
IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
one_folder = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])


def idx(array: Any) -> bytes:
    array = np.asarray(array)
    head = struct.pack(f">HBB{array.ndim}I", 0, IDX_TYPES[array.dtype.str[1:]], array.ndim, *array.shape)
    return head + bytes(array.astype(array.dtype.newbyteorder(">")).tobytes())


def write_idx(path: Path, array: Any) -> Path:
    path.write_bytes(gzip.compress(idx(array)) if path.suffix == ".gz" else idx(array))
    return path


def write(path: Path, text: str) -> Path:
    path.write_bytes(gzip.compress(text.encode()) if path.suffix == ".gz" else text.encode())
    return path


def images(n: int = 3, dtype: Any = np.uint8) -> np.ndarray:
    return (np.arange(n * 6) * 255 // max(1, n * 6 - 1)).reshape(n, 2, 3).astype(dtype)


def digits(n: int = 3) -> np.ndarray:
    return (np.arange(n) % 10).astype(np.uint8)


def check(data: Data) -> Data:
    """What holds for every Data."""
    for X, y in ((data.X, data.y), (data.X_test, data.y_test)):
        if X is not None:
            assert isinstance(X, np.ndarray) and X.ndim == 2 and X.flags.c_contiguous
            assert X.dtype in (f4, f8) and X.dtype.isnative
        if y is not None:
            assert X is not None and len(y) == len(X) and y.dtype.isnative
            assert y.dtype == np.int64 or y.dtype in (f4, f8)
            if y.dtype == np.int64:
                assert y.ndim == 1 and y.min() >= 0 and data.classes is not None and y.max() < len(data.classes)
            else:
                assert data.classes is None
    return data


def refuse(path: Path, message: str, **options: Any) -> None:
    """load_data refuses with a ValueError of one line that names the file."""
    with pytest.raises(ValueError, match=message) as error:
        load_data(path, **options)
    assert path.name in str(error.value) and "\n" not in str(error.value)


# IDX


@pytest.mark.parametrize("gz", ["", ".gz"])
@pytest.mark.parametrize("dot", ["-", "."])
@pytest.mark.parametrize("test_part", [False, True])
def test_idx_directory(tmp_path: Path, gz: str, dot: str, test_part: bool) -> None:
    write_idx(tmp_path / f"train-images{dot}idx3-ubyte{gz}", images(12))
    write_idx(tmp_path / f"train-labels{dot}idx1-ubyte{gz}", digits(12))
    if test_part:
        write_idx(tmp_path / f"t10k-images{dot}idx3-ubyte{gz}", images(2))
        write_idx(tmp_path / f"t10k-labels{dot}idx1-ubyte{gz}", digits(2))
    data = check(load_data(tmp_path))
    assert data.X.dtype == f4 and data.X.shape == (12, 6) and data.name == tmp_path.name
    np.testing.assert_array_equal(data.X, images(12).reshape(12, 6).astype(f4) / f4(255))
    assert data.X.min() == 0 and data.X.max() == 1
    assert data.y is not None and data.y.tolist() == digits(12).tolist()
    assert data.classes == tuple("0123456789")
    assert (data.X_test is not None, data.y_test is not None) == (test_part, test_part)
    if test_part:
        assert data.X_test is not None and data.X_test.shape == (2, 6)
        assert data.y_test is not None and data.y_test.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("name", "beside"),
    [
        (IMAGES, LABELS),
        (IMAGES, LABELS + ".gz"),
        (IMAGES + ".gz", LABELS),
        (IMAGES + ".gz", LABELS + ".gz"),
        ("t10k-images.idx3-ubyte", "t10k-labels.idx1-ubyte"),
        ("emnist-letters-images-idx3-ubyte", "emnist-letters-labels-idx1-ubyte"),
        ("photos.idx2", "photos.idx1"),
    ],
)
def test_idx_file_with_its_labels_beside(tmp_path: Path, name: str, beside: str) -> None:
    write_idx(tmp_path / name, images())
    write_idx(tmp_path / beside, np.array([7, 0, 7], np.uint8))
    data = check(load_data(str(tmp_path / name)))
    assert data.y is not None and data.y.tolist() == [7, 0, 7]  # kept, though the classes have gaps
    assert data.classes == tuple("01234567")
    assert data.X_test is None and data.y_test is None


def test_idx_labels_may_be_missing_where_allowed(tmp_path: Path) -> None:
    path = write_idx(tmp_path / IMAGES, images())
    refuse(path, rf"has no y: expected {LABELS} or {LABELS}\.gz beside it; labels=False reads without")
    data = check(load_data(path, labels=False))
    assert data.y is None and data.classes is None and data.name == IMAGES
    refuse(tmp_path, rf"has no y: it holds {IMAGES}; expected")
    assert load_data(tmp_path, labels=False).y is None
    write_idx(tmp_path / LABELS, digits())
    for found in (path, tmp_path):
        data = load_data(found, labels=False)
        assert data.y is not None and data.y.tolist() == [0, 1, 2]  # there, so it is read
    write_idx(tmp_path / "t10k-images-idx3-ubyte", images())
    refuse(tmp_path, r"has no y_test")
    assert load_data(tmp_path, labels=False).X_test is not None


def test_idx_test_part_only(tmp_path: Path) -> None:
    write_idx(tmp_path / "t10k-images-idx3-ubyte", images())
    write_idx(tmp_path / "t10k-labels-idx1-ubyte", digits())
    refuse(tmp_path, r"has no X: it holds t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte; expected")


def test_a_gz_name_on_unzipped_content_and_the_other_way(tmp_path: Path) -> None:
    (tmp_path / f"{IMAGES}.gz").write_bytes(idx(images()))
    (tmp_path / LABELS).write_bytes(gzip.compress(idx(digits())))
    assert load_data(tmp_path).X.shape == (3, 6)


@one_folder
@given(
    hnp.arrays(
        st.sampled_from(["u1", "i1", "i2", "i4", "f4", "f8"]),
        hnp.array_shapes(min_dims=2, max_dims=4, max_side=5),
        elements=None,
    ),
    st.data(),
)
def test_idx_round_trip(tmp_path: Path, X: np.ndarray, draw: st.DataObject) -> None:
    labels = draw.draw(hnp.arrays(np.uint8, len(X)))
    gz = draw.draw(st.sampled_from(["", ".gz"]))
    for old in tmp_path.iterdir():
        old.unlink()
    write_idx(tmp_path / (LABELS + gz), labels)
    data = check(load_data(write_idx(tmp_path / (IMAGES + gz), X)))
    expected = X.astype(f4) / f4(255) if X.dtype == np.uint8 else X.astype(f8 if X.dtype == f8 else f4)
    assert data.X.dtype == expected.dtype
    np.testing.assert_array_equal(data.X, expected.reshape(len(X), -1))
    np.testing.assert_array_equal(data.y, labels)


GOOD = idx(images())


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", r"is no IDX file: it begins with nothing"),
        (GOOD[:3], r"begins with 00 00 08; "),
        (b"\0\0\x07\x03" + GOOD[4:], r"begins with 00 00 07 03; expected, say, 00 00 08 03"),
        (b"\0\1" + GOOD[2:], r"is no IDX file: it begins with 00 01 08 03"),
        (b"<html>", r"begins with 3c 68 74 6d"),
        (idx(digits()), r"holds a 1-D array \(magic number 00 00 08 01\); expected images"),
        (b"\0\0\x08\x00\x05", r"holds a 0-D array"),
        (GOOD[:4], r"promises a header of 16 bytes but holds 4 bytes, it is corrupt"),
        (GOOD[:15], r"promises a header of 16 bytes but holds 15 bytes"),
        (GOOD[:16], r"promises 34 bytes, shape \(3, 2, 3\), but holds 16 bytes"),
        (GOOD[:-1], r"promises 34 bytes, shape \(3, 2, 3\), but holds 33 bytes"),
        (GOOD + b"\0", r"promises 34 bytes, shape \(3, 2, 3\), but holds 35 bytes"),
        (b"\0\0\x08\x03" + b"\xff" * 12 + b"\0" * 18, rf"promises {16 + (2**32 - 1) ** 3} bytes"),
        (b"\0\0\x08\xff" + b"\xff" * 30, r"promises a header of 1024 bytes"),
        (idx(np.zeros((0, 2, 3), "u1")), r"shape \(0, 2, 3\); expected .*not empty"),
        (idx(np.zeros((3, 0, 3), "u1")), r"shape \(3, 0, 3\); expected .*not empty"),
    ],
)
@pytest.mark.parametrize("gz", ["", ".gz"])
def test_idx_that_is_corrupt(tmp_path: Path, raw: bytes, message: str, gz: str) -> None:
    path = tmp_path / (IMAGES + gz)
    path.write_bytes(gzip.compress(raw) if gz else raw)
    write_idx(tmp_path / LABELS, digits())
    refuse(path, message)


def test_idx_labels_that_are_wrong(tmp_path: Path) -> None:
    path = write_idx(tmp_path / IMAGES, images())
    write_idx(tmp_path / LABELS, digits(4))
    refuse(path, r"y of .* has shape \(4,\) but X has 3 rows; expected \(3,\)")
    write_idx(tmp_path / LABELS, images())
    with pytest.raises(ValueError, match=rf"{LABELS} holds a 3-D array .*; expected labels, 1-D"):
        load_data(path)


ZIPPED = gzip.compress(idx(images(50)), mtime=0)


@pytest.mark.parametrize("n", [2, 3, 5, 9, 10, 11, 18, len(ZIPPED) // 2, len(ZIPPED) - 8, len(ZIPPED) - 1])
def test_gzip_that_is_truncated(tmp_path: Path, n: int) -> None:
    path = tmp_path / f"{IMAGES}.gz"
    path.write_bytes(ZIPPED[:n])
    refuse(path, r"is a truncated or corrupt gzip file \(.+\): fetch it again", labels=False)
    table = tmp_path / "table.csv.gz"
    table.write_bytes(ZIPPED[:n])
    refuse(table, r"is a truncated or corrupt gzip file")


@pytest.mark.parametrize("n", [0, 1])
def test_gzip_of_which_nothing_is_left(tmp_path: Path, n: int) -> None:
    path = tmp_path / f"{IMAGES}.gz"
    path.write_bytes(ZIPPED[:n])
    refuse(path, r"is no IDX file", labels=False)


def test_gzip_with_a_flipped_bit(tmp_path: Path) -> None:
    path = tmp_path / f"{IMAGES}.gz"
    for at in (2, len(ZIPPED) // 2, len(ZIPPED) - 6):
        path.write_bytes(ZIPPED[:at] + bytes([ZIPPED[at] ^ 0x10]) + ZIPPED[at + 1 :])
        refuse(path, r"is a truncated or corrupt gzip file", labels=False)


@one_folder
@given(st.binary(max_size=60), st.sampled_from([b"", b"\0\0", b"\0\0\x08\x03", b"\x1f\x8b", b"\x1f\x8b\x08\0"]))
def test_idx_noise_raises_nothing_but_value_errors(tmp_path: Path, noise: bytes, start: bytes) -> None:
    path = tmp_path / IMAGES
    path.write_bytes(start + noise)
    try:
        check(load_data(path, labels=False))
    except ValueError as error:
        assert IMAGES in str(error)


# .npy and .npz


def save(folder: Path, **arrays: Any) -> Path:
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array)
    return folder


@pytest.mark.parametrize("end", ["", "_train"])
@pytest.mark.parametrize("x", ["X", "x"])
def test_npy_directory_and_npz(tmp_path: Path, end: str, x: str) -> None:
    arrays: dict[str, Any] = {
        x + end: np.ones((4, 3)),
        "y" + end: [0, 1, 2, 1],
        f"{x}_test": np.zeros((2, 3)),
        "y_test": [3, 0],
    }
    (tmp_path / "folder").mkdir()
    np.savez(tmp_path / "file.npz", allow_pickle=False, **arrays)
    np.savez_compressed(
        tmp_path / "small.npz",
        allow_pickle=False,
        extra=[1],
        **{key.upper(): array for key, array in arrays.items()},
    )
    for path in (save(tmp_path / "folder", **arrays), tmp_path / "file.npz", tmp_path / "small.npz"):
        data = check(load_data(path))
        assert data.X.dtype == f8 and data.X.shape == (4, 3) and data.X.all()
        assert data.y is not None and data.y.tolist() == [0, 1, 2, 1]
        assert data.X_test is not None and data.X_test.shape == (2, 3) and not data.X_test.any()
        assert data.y_test is not None and data.y_test.tolist() == [3, 0]
        assert data.classes == ("0", "1", "2", "3") and data.name == path.stem


@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("X", "y"),
        ("x", "y"),
        ("X", "Y"),
        ("foo_X", "foo_y"),
        ("foo_x", "foo_y"),
        ("X_train", "y_train"),
        ("foo_X_test", "foo_y_test"),
        ("foo", "foo_labels"),
        ("foo", "foo_y"),
        ("max", "max_y"),
        ("Xenon", "Xenon_labels"),
    ],
)
def test_npy_file_with_its_labels_beside(tmp_path: Path, name: str, beside: str) -> None:
    save(tmp_path, **{name: np.ones((2, 3), f4)})
    path = tmp_path / f"{name}.npy"
    refuse(path, r"has no y: expected .*\.npy beside it; labels=False")
    assert check(load_data(path, labels=False)).y is None
    save(tmp_path, **{beside: [1, 0]})
    for labels in (True, False):
        data = check(load_data(path, labels=labels))
        assert data.y is not None and data.y.tolist() == [1, 0] and data.name == name


@pytest.mark.parametrize("shape", [(4, 6), (4, 2, 3), (4, 1, 2, 3)])
@pytest.mark.parametrize("dtype", [f4, f8])
def test_npy_stays_mapped_where_nothing_needs_conversion(tmp_path: Path, dtype: Any, shape: tuple[int, ...]) -> None:
    X = np.arange(24, dtype=dtype).reshape(shape)
    save(tmp_path, X=X, y=np.zeros(4, int))
    for path in (tmp_path, tmp_path / "X.npy"):
        data = check(load_data(path))
        assert isinstance(data.X, np.memmap) and data.X.dtype == dtype and not data.X.flags.writeable
        np.testing.assert_array_equal(data.X, X.reshape(4, 6))


@pytest.mark.parametrize(
    ("X", "dtype"),
    [
        (np.arange(24, dtype=np.uint8).reshape(4, 6), f4),
        (np.asfortranarray(np.arange(24, dtype=np.uint8).reshape(4, 6)), f4),
        (np.asfortranarray(np.arange(24, dtype=f4).reshape(4, 6)), f4),
        (np.asfortranarray(np.arange(24, dtype=f8).reshape(4, 2, 3)), f8),
        (np.arange(24, dtype=">f4").reshape(4, 6), f4),
        (np.arange(24, dtype=">f8").reshape(4, 6), f8),
        (np.arange(24, dtype=np.float16).reshape(4, 6), f4),
        (np.arange(24, dtype=np.longdouble).reshape(4, 6), f4),
        (np.arange(24, dtype=np.int64).reshape(4, 6), f4),
        (np.arange(24, dtype=">u2").reshape(4, 6), f4),
        (np.arange(24).reshape(4, 6) % 2 == 0, f4),
    ],
)
def test_npy_conversions(tmp_path: Path, X: np.ndarray, dtype: Any) -> None:
    save(tmp_path, X=X, y=np.zeros(4, int))
    np.savez(tmp_path / "all.npz", X=X, y=np.zeros(4, int))
    for path in (tmp_path, tmp_path / "all.npz"):
        data = check(load_data(path))
        expected = X.astype(f4) / f4(255) if X.dtype == np.uint8 else X.astype(dtype)
        assert data.X.dtype == dtype and data.X.tobytes() == expected.tobytes(order="C")


@pytest.mark.parametrize("shape", [(50, 6), (50, 2, 3), (50, 3, 1, 2)])
@pytest.mark.parametrize("dtype", [np.uint8, f4, f8, ">f4"])
@pytest.mark.parametrize("order", ["C", "F"])
def test_a_large_array_is_converted_some_rows_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...], dtype: Any, order: Any
) -> None:
    for module in (streams, data_module):
        monkeypatch.setattr(module, "SPOOL_BYTES", 200)
        monkeypatch.setattr(module, "BLOCK_BYTES", 100)
    pieces: list[int] = []
    append = streams.Spool.append
    monkeypatch.setattr(streams.Spool, "append", lambda spool, rows: (pieces.append(len(rows)), append(spool, rows)))
    X = np.arange(300).reshape(shape).astype(dtype, order=order)
    save(tmp_path, X=X, y=np.zeros(50, int))
    data = check(load_data(tmp_path))
    expected = X.astype(f4) / f4(255) if X.dtype == np.uint8 else X.astype(f8 if X.dtype == f8 else f4)
    np.testing.assert_array_equal(data.X, expected.reshape(50, 6))
    assert isinstance(data.X, np.memmap) and data.X.dtype == expected.dtype
    assert not pieces or (sum(pieces) == 50 and max(pieces) * 6 * X.itemsize <= 100)
    assert bool(pieces) == (X.dtype not in (f4, f8) or order == "F")


@pytest.mark.parametrize(
    ("y", "y_test", "expected", "expected_test", "classes"),
    [
        ([1, 0, 3], [2], [1, 0, 3], [2], "0 1 2 3"),
        ([[1], [0], [3]], None, [1, 0, 3], None, "0 1 2 3"),
        ([True, False, True], None, [1, 0, 1], None, "0 1"),
        ([5, 7, 5], None, [5, 7, 5], None, "0 1 2 3 4 5 6 7"),
        ([-1, 1, -1], [1], [0, 1, 0], [1], "-1 1"),
        ([10**9, 7, 8], [-2], [3, 1, 2], [0], "-2 7 8 1000000000"),
        (np.array([2**64 - 1, 1, 1], np.uint64), None, [1, 0, 0], None, f"1 {2**64 - 1}"),
        (["b", "a", "b"], ["c"], [1, 0, 1], [2], "a b c"),
        ([["b"], ["a"], ["b"]], None, [1, 0, 1], None, "a b"),
    ],
)
def test_npz_labels(tmp_path: Path, y: Any, y_test: Any, expected: Any, expected_test: Any, classes: str) -> None:
    test_part = {} if y_test is None else {"X_test": np.ones((1, 2)), "y_test": y_test}
    np.savez(tmp_path / "a.npz", X=np.ones((3, 2)), y=y, **test_part)
    data = check(load_data(tmp_path / "a.npz"))
    assert data.y is not None and data.y.dtype == np.int64 and data.y.tolist() == expected
    assert (data.y_test if data.y_test is None else data.y_test.tolist()) == expected_test
    assert data.classes == tuple(classes.split())


@pytest.mark.parametrize(
    ("y", "dtype"),
    [
        (np.array([0.5, 1, 2]), f8),
        (np.array([0, 1, 2], f4), f4),
        (np.array([0, 1, 2], np.float16), f4),
        (np.array([0.5, 1, 2], ">f8"), f8),
        (np.array([[0.5], [1], [2]]), f8),
        (np.eye(3), f8),
        (np.eye(3, dtype=int), f4),
        (np.eye(3, dtype=bool), f4),
        (np.asfortranarray(np.arange(6.0).reshape(3, 2)), f8),
    ],
)
def test_npz_targets(tmp_path: Path, y: np.ndarray, dtype: Any) -> None:
    np.savez(tmp_path / "a.npz", X=np.ones((3, 2)), y=y)
    data = check(load_data(tmp_path / "a.npz"))
    assert data.y is not None and data.y.dtype == dtype and data.y.shape == y.shape
    np.testing.assert_array_equal(data.y, y)


@pytest.mark.parametrize("y", [np.arange(4.0), np.arange(4, dtype=f4), np.asfortranarray(np.ones((4, 2))), np.arange(4)])
@pytest.mark.parametrize("kind", ["folder", "file.npz"])
def test_y_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, y: np.ndarray) -> None:
    """Whatever becomes of its file, a training that runs sees the same targets; X stays mapped."""
    monkeypatch.setattr(data_module, "SPOOL_BYTES", 0)
    X = np.ones((4, 6))
    if kind == "folder":
        path = save(tmp_path, X=X, y=y, X_test=X, y_test=y)
    else:
        np.savez(path := tmp_path / kind, X=X, y=y, X_test=X, y_test=y)
    data = check(load_data(path))
    assert isinstance(data.X, np.memmap)
    for found in (data.y, data.y_test):
        assert streams.memory_map(found) is None
        np.testing.assert_array_equal(found, y)


ONES, LABEL = np.ones((3, 2)), [0, 1, 0]


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a": ONES, "b": LABEL}, r"has no X: it holds (a, b|b, a|a.npy, b.npy); expected .*X.* y"),
        ({"X": ONES}, r"has no y: it holds X(\.npy)?; expected .*labels=False"),
        ({"y": LABEL}, r"has no X: it holds y"),
        ({"X": ONES, "y": LABEL, "X_test": ONES}, r"has no y_test: .*labels=False"),
        ({"X": ONES, "y": LABEL, "y_test": LABEL}, r"has no X_test: "),
        ({"X_train": ONES, "y": LABEL}, r"has no y: it holds X_train"),
        ({"X": ONES, "y": [0, 1]}, r"y of .* has shape \(2,\) but X has 3 rows; expected \(3,\)"),
        (
            {"X": ONES, "y": LABEL, "X_test": ONES, "y_test": [1]},
            r"y_test of .* has shape \(1,\) but X has 3 rows",
        ),
        ({"X": ONES, "y": LABEL, "X_test": np.ones((3, 4)), "y_test": LABEL}, r"has 4 columns but X has 2"),
        ({"X": ONES, "y": 3}, r"y of .* has shape \(\) but"),
        ({"X": ONES, "y": np.ones((3, 2, 2))}, r"y of .* has shape \(3, 2, 2\)"),
        ({"X": ONES, "y": [["a", "b"]] * 3}, r"y of .* has shape \(3, 2\)"),
        ({"X": ONES, "y": list("abc"), "X_test": ONES, "y_test": LABEL}, r""),
        ({"X": np.ones(3), "y": LABEL}, r"X of .* has shape \(3,\); expected \(rows, features\) or images"),
        ({"X": np.ones(()), "y": LABEL}, r"X of .* has shape \(\)"),
        ({"X": np.ones((0, 2)), "y": []}, r"X of .* has shape \(0, 2\); .*not empty"),
        ({"X": np.ones((3, 0)), "y": LABEL}, r"X of .* has shape \(3, 0\); .*not empty"),
    ],
)
def test_npy_and_npz_parts_that_do_not_fit(tmp_path: Path, arrays: dict[str, Any], message: str) -> None:
    (tmp_path / "folder").mkdir()
    np.savez(tmp_path / "a.npz", **arrays)
    for path in (tmp_path / "a.npz", save(tmp_path / "folder", **arrays)):
        if message:
            refuse(path, message)
        else:
            with pytest.raises(ValueError, match="of y and y_test one holds text and one holds numbers"):
                load_data(path)


@pytest.mark.parametrize(
    ("X", "message"),
    [
        ([["a", "b"]] * 3, r"X of .* holds text"),
        (np.ones((3, 2), complex), r"X of .* holds complex numbers"),
        (np.ones((3, 2), "M8[D]"), r"X of .* holds dates"),
        (np.ones((3, 2), "f4,f4"), r"X of .* holds records"),
    ],
)
def test_npz_that_holds_no_numbers(tmp_path: Path, X: Any, message: str) -> None:
    np.savez(tmp_path / "a.npz", X=X, y=LABEL)
    with pytest.raises(TypeError, match=message):
        load_data(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", X=ONES, y=np.ones(3, complex))
    with pytest.raises(TypeError, match=r"y of .* holds complex numbers"):
        load_data(tmp_path / "a.npz")


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a pickle was loaded",))


def test_pickles_are_refused(tmp_path: Path) -> None:
    bombs = np.array([[Bomb()]], object)
    np.savez(tmp_path / "a.npz", X=bombs, y=[0])
    np.savez(tmp_path / "b.npz", X=ONES, y=np.array([Bomb()] * 3, object))
    np.save(tmp_path / "X.npy", bombs)
    for name in ("a.npz", "b.npz", "X.npy"):
        refuse(tmp_path / name, r"cannot be read \(.*\): .*pickled objects are never loaded", labels=False)
    np.savez(tmp_path / "c.npz", X=ONES, y=LABEL, history=np.array([Bomb()], object))
    assert load_data(tmp_path / "c.npz").X.shape == (3, 2)  # what is not asked for is not read


def npz_bytes() -> bytes:
    file = io.BytesIO()
    np.savez_compressed(file, X=ONES, y=LABEL)
    return file.getvalue()


def npy_bytes() -> bytes:
    file = io.BytesIO()
    np.save(file, ONES)
    return file.getvalue()


@pytest.mark.parametrize(("kind", "raw"), [("npz", npz_bytes()), ("npy", npy_bytes())])
def test_npy_and_npz_that_are_truncated_or_mistaken(tmp_path: Path, kind: str, raw: bytes) -> None:
    path = tmp_path / f"X.{kind}"
    other = npy_bytes() if kind == "npz" else npz_bytes()
    for wrong in (
        b"",
        b"PK",
        b"not an array",
        other,
        *(raw[:n] for n in (1, 6, 20, len(raw) // 2, len(raw) - 1)),
    ):
        path.write_bytes(wrong)
        refuse(path, r"cannot be read \(.*\): expected numbers saved with np.save or np.savez", labels=False)


@one_folder
@given(
    st.sampled_from(["npz", "npy"]),
    st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1),
)
def test_npy_and_npz_noise_raises_nothing_but_value_and_type_errors(
    tmp_path: Path, kind: str, flips: list[tuple[int, int]]
) -> None:
    raw = bytearray(npz_bytes() if kind == "npz" else npy_bytes())
    for at, bits in flips:
        raw[at % len(raw)] ^= bits
    path = tmp_path / f"X.{kind}"
    path.write_bytes(raw)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            check(load_data(path, labels=False))
        except (ValueError, TypeError) as error:
            assert path.name in str(error)


# CSV

IRIS = "5.1,3.5,setosa\n6,2.9,virginica\n4.9,3,setosa\n"


@pytest.mark.parametrize("header", ["", "length,width,species\n", "0,1,Label\n", "1,2,y\n", '"a b","c, d",e\n'])
@pytest.mark.parametrize(("name", "mark"), [("iris.csv", ","), ("iris.csv.gz", ","), ("iris.TSV", "\t"), ("iris.csv", ";")])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_csv(tmp_path: Path, header: str, name: str, mark: str, end: str, bom: str) -> None:
    lines = [mark.join(row) for row in csv.reader(io.StringIO(header.replace(", ", "") + IRIS))]
    data = check(load_data(write(tmp_path / name, bom + end.join(lines) + end)))
    assert data.X.dtype == f4 and data.name == "iris"
    np.testing.assert_array_equal(data.X, np.array([[5.1, 3.5], [6, 2.9], [4.9, 3]], f4))
    assert data.y is not None and data.y.tolist() == [0, 1, 0] and data.classes == ("setosa", "virginica")


@pytest.mark.parametrize(
    ("column", "y", "classes"),
    [
        ("0 1 2 1", [0, 1, 2, 1], "0 1 2"),
        ("3 1 2 1", [2, 0, 1, 0], "1 2 3"),
        ("-1 1 -1 1", [0, 1, 0, 1], "-1 1"),
        ("10 9 +9 010", [1, 0, 0, 1], "9 10"),
        (f"{2**70} 5 5 5", [1, 0, 0, 0], f"5 {2**70}"),
        ("b a b c", [1, 0, 1, 2], "a b c"),
        ("2 10 K Q", [1, 0, 2, 3], "10 2 K Q"),
        ("True False True True", [1, 0, 1, 1], "False True"),
        ("0.5 1 2 -1e3", [0.5, 1, 2, -1000], None),
        ("1.0 2.0 1.0 0.0", [1, 2, 1, 0], None),
        ("1_0 1_1 1_0 2", [0, 1, 0, 2], "1_0 1_1 2"),
    ],
)
def test_csv_target_kinds(tmp_path: Path, column: str, y: list[float], classes: str | None) -> None:
    rows = "".join(f"{i},{cell}\n" for i, cell in enumerate(column.split()))
    for text in (rows, "a,b\n" + rows):
        data = check(load_data(write(tmp_path / "a.csv", text)))
        assert data.y is not None and data.y.tolist() == y
        assert data.y.dtype == (f8 if classes is None else np.int64)
        assert data.classes == (None if classes is None else tuple(classes.split()))
        assert data.X.tolist() == [[0], [1], [2], [3]]


@pytest.mark.parametrize(
    ("header", "target", "column"),
    [
        ("a,b,c", None, 2),
        ("a,Label,c", None, 1),
        ("TARGET,b,c", None, 0),
        ("a, class ,c", None, 1),
        ("y,b,c", None, 0),
        ("y,target,label", None, 2),
        ("y,class,target", None, 2),
        ("a,b,label", "a", 0),
        ("a,b,label", 1, 1),
        ("a,b,label", -3, 0),
        ("a,b,c", np.int64(0), 0),
        ("0,1,2", "1", 1),
        (None, None, 2),
        (None, 0, 0),
        (None, -2, 1),
    ],
)
def test_csv_target_column(tmp_path: Path, header: str | None, target: Any, column: int) -> None:
    text = ("" if header is None else header + "\n") + "0,1,2\n1,0,0\n2,2,1\n"
    table = np.array([[0, 1, 2], [1, 0, 0], [2, 2, 1]])
    data = check(load_data(write(tmp_path / "a.csv", text), target=target))
    assert data.y is not None and data.y.tolist() == table[:, column].tolist()
    assert data.X.tolist() == np.delete(table, column, axis=1).tolist()


@pytest.mark.parametrize("header", ["0,1,2", "1,2,species", "a,0,1", "0,a,1"])
def test_csv_header_with_numbers(tmp_path: Path, header: str) -> None:
    data = load_data(write(tmp_path / "a.csv", f"{header}\n5,6,0\n7,8,1\n"))
    assert len(data.X) == (3 if header == "0,1,2" else 2)  # nothing says that it is a header
    data = load_data(write(tmp_path / "a.csv", "0,1,setosa\n7,8,virginica\n"))
    assert len(data.X) == 2


def test_csv_without_labels(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for text in ("1,2\n3,4\n", "a,b\n1,2\n3,4\n"):
        data = check(load_data(write(path, text), labels=False))
        assert data.X.tolist() == [[1, 2], [3, 4]] and data.y is None and data.classes is None
        unlabelled = load_data(path, labels=False, target="missing")
        assert unlabelled.y is None and len(unlabelled.X) == 2
        data = load_data(path, labels=False, target=0)
        assert data.y is not None and data.X.tolist() == [[2], [4]]
    data = check(load_data(write(path, "label,b\n1,2\n0,4\n"), labels=False))
    assert data.y is not None and data.y.tolist() == [1, 0] and data.X.tolist() == [[2], [4]]
    assert check(load_data(write(path, "1\n2\n"), labels=False)).X.tolist() == [[1], [2]]


def test_csv_blank_lines_quotes_and_spaces(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", '\n\na,b,label\n\n"1", 2,"u, ""v""\nw"\n\n 3,4e0 , x\n')
    data = check(load_data(path))
    assert data.X.tolist() == [[1, 2], [3, 4]] and data.classes == ('u, "v"\nw', "x")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"is empty; expected a target column"),
        ("\n\n", r"is empty"),
        ("a,b,label\n", r"has a header but no rows"),
        ("label\n1\n2\n", r"has 1 column; expected a target column and at least one column of numbers"),
        ("a,b,label\n1,2,0\n1,,0\n", r"line 3, column 2 \('b'\) is empty; expected a number"),
        ("a,b,label\n1,2,0\n1,  ,0\n", r"line 3, column 2 \('b'\) is empty"),
        ("a,b,label\n1,2,0\n1,1_000,0\n", r"line 3, column 2 \('b'\) is '1_000'; expected a number"),
        ("a,label,b\n1,0,2\n1,0,zwei\n", r"line 3, column 3 \('b'\) is 'zwei'; expected a number"),
        ("1,2,0\n\n1,x,0\n", r"line 3, column 2 is 'x'; expected a number"),
        (",2,0\n1,2,0\n", r"line 1, column 1 is empty"),
        ("?,2.5,0\n1,2,0\n", r"line 1, column 1 is '\?'"),
        ("?,3,1,u\n4,5,6,v\n", r"line 1, column 1 is '\?'"),
        ("1,2,0\n1,nan,0\n", r"line 2, column 2 is 'nan'; expected a finite float32 number"),
        ("1,2,0\n-inf,2,0\n", r"line 2, column 1 is '-inf'; expected a finite"),
        ("1,2,0\n1,1e39,0\n", r"line 2, column 2 is '1e\+39'; expected a finite float32 number"),
        ("1,2,0\n1,2\n", r"line 2 has 2 cells; expected 3 as in the first"),
        ("a,b,label\n1,2,0,4\n", r"line 2 has 4 cells; expected 3"),
        ("1,2,0\n1,2,\n", r"line 2, column 3 is empty; expected a label or a number"),
        ("1,2,u\n1,2,\n", r"line 2, column 3 is empty; expected a label or a number"),
        ("1,2,0.5\n1,2,\n", r"line 2, column 3 is empty; expected a finite number, as elsewhere"),
        (
            "1,2,0.5\n1,2,N/A\n",
            r"line 2, column 3 is 'N/A'; expected a finite number, as elsewhere in this column",
        ),
        ("a,y\n1,0.5\n1,nan\n", r"line 3, column 2 \('y'\) is 'nan'; expected a finite number"),
        ("1,cat\n1,dog\n1,nan\n", r"line 3, column 2 is 'nan'; expected a label or a number"),
        ('1,2,"u\n1,2,v\n', r"line 2 is no line of a CSV file"),
        ('1,2,"u"v\n', r"line 1 is no line of a CSV file"),
    ],
)
@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_csv_refused(tmp_path: Path, text: str, message: str, name: str) -> None:
    refuse(write(tmp_path / name, text), message)


def test_csv_target_that_is_not_there(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "a,b,label\n1,2,0\n")
    refuse(path, r"has no column 'Lable'; its columns are a, b, label$", target="Lable")
    for target in (3, -4):
        refuse(path, rf"target={target} is no column of .*; expected 0\.\.2 or a name", target=target)
    wide = write(tmp_path / "b.csv", ",".join("abcdefghijkl") + "\n")
    refuse(wide, r"has no column 'z'; its columns are a, b, c, d, e, f, g, h, \.\.\.$", target="z")
    refuse(write(tmp_path / "c.csv", "1,2\n3,4\n"), r"has no column 'z'; its columns are 0, 1$", target="z")
    with pytest.raises(TypeError, match=r"target must be a column's name or index, got 1\.5"):
        load_data(path, target=1.5)  # type: ignore[arg-type]


def test_csv_that_is_not_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.csv"
    for raw in ("1,größer\n".encode("latin-1"), "1,a\n".encode("utf-16")):
        path.write_bytes(raw)
        refuse(path, r"is not UTF-8 text \(.*\); save it as UTF-8")


@one_folder
@given(
    hnp.arrays(
        f4,
        st.tuples(st.integers(1, 6), st.integers(1, 4)),
        elements=st.floats(width=32, allow_nan=False, allow_infinity=False),
    ),
    st.data(),
)
def test_csv_round_trip(tmp_path: Path, X: np.ndarray, draw: st.DataObject) -> None:
    alphabet = st.characters(codec="utf-8", exclude_characters="\0")
    words = st.text(alphabet, max_size=8).map(lambda text: f"<{text}>")
    kind: st.SearchStrategy[Any] = draw.draw(
        st.sampled_from([words, st.integers(-(10**20), 10**20), st.floats(allow_nan=False, allow_infinity=False)])
    )
    column = draw.draw(st.lists(kind, min_size=len(X), max_size=len(X)))
    at, mark = draw.draw(st.integers(0, X.shape[1])), draw.draw(st.sampled_from(",;\t"))
    header = [f"f{i}" for i in range(X.shape[1])]
    header.insert(at, "target")
    path = tmp_path / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, delimiter=mark, quoting=draw.draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])))
        for row, cell in zip([header, *X.tolist()], ["target", *column], strict=True):
            writer.writerow(row if cell == "target" else [*map(repr, row[:at]), cell, *map(repr, row[at:])])
    data = check(load_data(path))
    np.testing.assert_array_equal(data.X, X)
    assert data.y is not None
    if data.classes is None:
        assert data.y.tolist() == column
    else:
        assert [data.classes[code] for code in data.y] == list(map(str, column))
        assert list(data.classes) == list(map(str, sorted(set(column))))


@one_folder
@given(st.text(st.sampled_from('0123.,;\n\r"ab -'), max_size=40), st.booleans())
def test_csv_noise_raises_nothing_but_value_errors(tmp_path: Path, text: str, labels: bool) -> None:
    try:
        check(load_data(write(tmp_path / "a.csv", text), labels=labels))
    except ValueError as error:
        assert "a.csv" in str(error)


# Paths


@pytest.mark.parametrize("name", ["missing", "missing.csv", "missing/X.npy", "missing.npz"])
def test_missing_path(tmp_path: Path, name: str) -> None:
    with pytest.raises(FileNotFoundError, match=r"missing.* does not exist; expected a directory .*\.npz.*\.csv.*IDX"):
        load_data(tmp_path / name)


@pytest.mark.parametrize("name", ["a.arrow", "a", "a.txt", "a.npy.gz", "a.csv.zip", "csv"])
def test_unknown_kind(tmp_path: Path, name: str) -> None:
    refuse(write(tmp_path / name, "1,2\n"), r"is of no kind that can be read; expected .*\.npz.*\.csv")


def test_directory_without_data(tmp_path: Path) -> None:
    refuse(tmp_path, r"has no X: it holds nothing; expected X\.npy and y\.npy.*train-images-idx3-ubyte")
    for i in range(20):
        (tmp_path / f"{i:02}.txt").touch()
    refuse(tmp_path, r"has no X: it holds 00\.txt, 01\.txt.*07\.txt, \.\.\.; expected")


def test_directory_named_like_a_file(tmp_path: Path) -> None:
    for name in ("folder.csv", "folder.npz", "folder.npy"):
        (tmp_path / name).mkdir()
        save(tmp_path / name, X=ONES, y=LABEL)
        assert load_data(tmp_path / name).X.shape == (3, 2)


@pytest.mark.parametrize("path", [3, None, ["a.csv"]])
def test_path_that_is_none(path: Any) -> None:
    with pytest.raises(TypeError):
        load_data(path)


def test_target_is_for_tables_only(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", X=ONES, y=LABEL)
    refuse(tmp_path / "a.npz", r"target='y' was given .*for \.csv, \.tsv and \.parquet files only", target="y")
    with pytest.raises(ValueError, match=r"target=0 was given"):
        load_data(tmp_path, target=0)


def test_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, X=ONES, y=LABEL)
    monkeypatch.chdir(tmp_path)
    assert load_data(".").name == tmp_path.name
    assert load_data("X.npy").name == "X"


# Data and the data sets


def test_data_is_frozen_and_compares_by_identity() -> None:
    data = Data(ONES, None, None, None, None, "a")
    with pytest.raises(AttributeError):
        data.name = "b"  # type: ignore[misc]
    assert data != Data(ONES, None, None, None, None, "a")


def test_mnist10k() -> None:
    data = check(mnist10k())
    assert data.name == "mnist10k" and data.classes == tuple("0123456789")
    assert data.X_test is not None and data.y is not None and data.y_test is not None
    for X, y, n in ((data.X, data.y, 8000), (data.X_test, data.y_test, 2000)):
        assert X.shape == (n, 784) and X.dtype == f4 and X.min() == 0 and X.max() == 1
        assert y.shape == (n,) and np.bincount(y).min() > n // 13 and len(np.bincount(y)) == 10
    assert data.y[:5].tolist() == [5, 0, 4, 1, 9] and data.y_test[:5].tolist() == [7, 2, 1, 0, 4]
    assert math.isclose(float(data.X.mean(dtype=f8)), 0.13, abs_tol=0.01)


def test_mnist10k_is_small_and_says_where_it_comes_from() -> None:
    folder = Path(sys.modules[mnist10k.__module__].__file__ or "").with_name("mnist10k")
    assert sum(file.stat().st_size for file in folder.iterdir()) <= 2_000_000
    text = re.sub(r"\s+", " ", (folder / "README.md").read_text())
    for word in ("MNIST", "LeCun", "Cortes", "Burges", "CC BY-SA 3.0", "first 8,000", "first 2,000"):
        assert word in text
    for file in folder.glob("*.gz"):
        assert file.read_bytes()[4:8] == b"\0\0\0\0"  # no time stamp: the same bytes whenever it is cut


def test_the_whole_of_mnist() -> None:
    if not MNIST.is_dir():
        pytest.skip(f"the whole of MNIST is not at {MNIST}")
    data, part = check(load_data(MNIST)), mnist10k()
    assert data.name == "mnist" and data.classes == tuple("0123456789")
    assert data.y is not None and data.X_test is not None and data.y_test is not None
    assert data.X.shape == (60000, 784) and data.X_test.shape == (10000, 784)
    assert np.bincount(data.y).tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(data.y_test).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    np.testing.assert_array_equal(part.X, data.X[:8000])
    np.testing.assert_array_equal(part.y, data.y[:8000])
    np.testing.assert_array_equal(part.X_test, data.X_test[:2000])
    np.testing.assert_array_equal(part.y_test, data.y_test[:2000])


def test_the_import_is_light() -> None:
    heavy = "('pandas', 'polars', 'scipy', 'sklearn')"
    code = f"import sys, bpgpu.data; print([name for name in {heavy} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
