"""What is read in pieces: Parquet, CSV files larger than what is kept in memory; and arrays of .npz files that are mapped."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bpgpu import data as data_module
from bpgpu import load_data, streams, tables
from bpgpu.cli import main

pyarrow = pytest.importorskip("pyarrow")


@pytest.fixture(params=["large pieces", "small pieces"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether what is read is cut into small pieces, and goes to disk."""
    if request.param == "small pieces":
        for module in (streams, data_module):
            monkeypatch.setattr(module, "SPOOL_BYTES", 200)
        monkeypatch.setattr(tables, "_ROWS", 7)
        monkeypatch.setattr(tables, "BLOCK_BYTES", 100)
    return bool(request.param == "small pieces")


def write(path: Path, row_group_size: int = 13, **columns: Any) -> Path:
    from pyarrow import parquet

    parquet.write_table(pyarrow.table(columns), path, row_group_size=row_group_size)
    return path


def numbers(n: int = 50) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {"a": rng.random(n), "b": rng.integers(-9, 9, n), "c": rng.random(n).astype(np.float32), "d": rng.random(n) > 0.5}


def as_matrix(columns: dict[str, Any]) -> np.ndarray:
    return np.stack([np.asarray(column, np.float32) for column in columns.values()], axis=1)


@pytest.mark.parametrize(
    ("values", "y", "classes"),
    [
        (lambda i: int(i % 3), lambda i: i % 3, ("0", "1", "2")),
        (lambda i: int(i % 2) * 10 - 5, lambda i: i % 2, ("-5", "5")),
        (lambda i: "cab"[i % 3], lambda i: (2, 0, 1)[i % 3], ("a", "b", "c")),
        (lambda i: bool(i % 2), lambda i: i % 2, ("0", "1")),
        (lambda i: i / 4, lambda i: i / 4, None),
        (lambda i: float(i), lambda i: float(i), None),
    ],
)
def test_parquet(values: Any, y: Any, classes: Any, pieces: bool, tmp_path: Path) -> None:
    columns = numbers()
    data = load_data(write(tmp_path / "a.parquet", label=[values(i) for i in range(50)], **columns))
    np.testing.assert_array_equal(data.X, as_matrix(columns))
    assert data.X.dtype == np.float32 and isinstance(data.X, np.memmap) == pieces
    assert data.y is not None and data.y.tolist() == [y(i) for i in range(50)] and data.classes == classes
    assert data.name == "a" and data.y.dtype == (np.float64 if classes is None else np.int64)


def test_target_of_parquet(tmp_path: Path) -> None:
    columns = numbers()
    path = write(tmp_path / "a.parquet", **columns, e=["x", "y"] * 25)
    assert load_data(path).classes == ("x", "y")
    for target in ("b", 1, "1"):
        data = load_data(path, target="e") if target == "e" else load_data(write(path, **columns), target=target)
        assert data.X.shape == (50, 3) and len(data.classes or ()) == len(set(columns["b"].tolist()))
    data = load_data(path, labels=False)
    assert data.y is None and data.X.shape == (50, 4)
    dictionary = pyarrow.array(["u", "v"] * 25).dictionary_encode()
    assert load_data(write(path, **columns, y=dictionary)).classes == ("u", "v")


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"a": [1.0, None], "y": [0, 1]}, r"row 1, column 'a' is (empty|nan); expected a finite float32 number"),
        ({"a": [1.0, np.inf], "y": [0, 1]}, r"row 1, column 'a' is inf"),
        ({"a": [1.0, 1e99], "y": [0, 1]}, r"row 1, column 'a' is 1e\+99; expected a finite float32 number"),
        ({"a": ["u", "v"], "y": [0, 1]}, r"column 'a' holds string; expected numbers"),
        ({"a": [[1, 2], [3]], "y": [0, 1]}, r"column 'a' holds list<.*>; expected numbers"),
        ({"a": [1, 2], "y": [0, None]}, r"row 1, column 'y' is empty; expected a label or a number"),
        ({"a": [1, 2], "y": [0.5, None]}, r"row 1, column 'y' is empty; expected a finite number, as elsewhere"),
        ({"a": [1, 2], "y": [0.5, np.nan]}, r"row 1, column 'y' is nan; expected a finite number"),
        ({"y": [1, 2]}, r"has 1 column; expected a target column and at least one"),
        ({"a": np.zeros(0), "y": np.zeros(0)}, r"has no rows; expected rows of numbers"),
    ],
)
def test_parquet_refused(columns: dict[str, Any], message: str, pieces: bool, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message) as error:
        load_data(write(tmp_path / "a.parquet", 1, **columns))
    assert "\n" not in str(error.value) and "a.parquet" in str(error.value)


def test_what_is_no_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.parquet").write_bytes(b"PAR1 or so")
    with pytest.raises(ValueError, match="is no Parquet file, or not a whole one"):
        load_data(tmp_path / "a.parquet")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ImportError, match=r"bpgpu\[parquet\]"):
        load_data(tmp_path / "a.parquet")


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
@pytest.mark.parametrize("target", ["text", "integers", "numbers", "whole numbers"])
def test_csv_in_pieces(name: str, target: str, pieces: bool, tmp_path: Path) -> None:
    columns = numbers(40)
    last = {
        "text": [f"class {i % 3}" for i in range(40)], "integers": [f"{i % 4:02}" for i in range(40)],
        "numbers": [f"{i}" for i in range(39)] + ["0.5"], "whole numbers": [f"{i % 3}.0" for i in range(40)],
    }[target]  # fmt: skip
    rows = zip(*(np.asarray(column, np.float32).tolist() for column in columns.values()), last, strict=True)
    text = "\n".join(["a,b,c,d,label", *(",".join(map(str, row)) for row in rows)])
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    data = load_data(tmp_path / name)
    np.testing.assert_array_equal(data.X, as_matrix(columns))
    assert isinstance(data.X, np.memmap) == pieces and data.y is not None
    if data.classes is None:
        assert target in ("numbers", "whole numbers") and data.y.tolist() == list(map(float, last))
    else:
        assert [data.classes[code] for code in data.y] == (last if target == "text" else [str(int(cell)) for cell in last])


@pytest.mark.parametrize("kind", ["npz", "npz by columns", "images", "npz, compressed"])
def test_arrays_that_are_mapped(kind: str, pieces: bool, tmp_path: Path) -> None:
    X = np.random.default_rng(0).random((30, 8)).astype(np.float32)
    path = tmp_path / "a.npz"
    if kind == "images":
        X = (X * 255).astype(np.uint8).reshape(30, 2, 4)
        np.save(tmp_path / "a.npy", X)
        np.save(tmp_path / "a_y.npy", np.arange(30) % 3)
        path, X = tmp_path / "a.npy", X.reshape(30, 8) / np.float32(255)
    elif kind == "npz, compressed":
        np.savez_compressed(path, X=X, y=np.arange(30) % 3)
    else:
        np.savez(path, X=np.asfortranarray(X) if "columns" in kind else X, y=np.arange(30) % 3)
    data = load_data(path)
    np.testing.assert_array_equal(data.X, X)
    assert data.y is not None and data.y.tolist() == [i % 3 for i in range(30)]
    assert (streams.memory_map(data.X) is not None) == (pieces and "compressed" not in kind)


def test_the_command_line_trains_on_parquet(pieces: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same model, to the bit, as of the same table in CSV, in memory or not."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    X = (rng.standard_normal((300, 2)) * 0.3 + np.array([[0, 0], [3, 0], [0, 3]])[y]).astype(np.float32)
    kind = np.array(["ant", "bee", "cat"])[y]
    write(tmp_path / "a.parquet", x1=X[:, 0], x2=X[:, 1], kind=kind)
    rows = zip(*X.T.tolist(), kind, strict=True)
    (tmp_path / "a.csv").write_text("\n".join(["x1,x2,kind", *(f"{a},{b},{k}" for a, b, k in rows)]))
    models = []
    for name in ("a.parquet", "a.csv"):
        model = str(tmp_path / "model")
        arguments = ["--hidden", "8", "--epochs", "8", "--batch-size", "16", "--target", "kind", "--output", model]
        assert main(["train", "--data", str(tmp_path / name), *arguments]) == 0
        assert "test accuracy 100.00%" in capsys.readouterr().out
        models.append(Path(model).read_bytes())
        assert main(["predict", model, str(tmp_path / name), "--target", "kind"]) == 0
        assert "of 300)" in capsys.readouterr().err
    assert models[0] == models[1]


def test_a_csv_file_is_closed_when_an_error_ends_its_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.csv").write_text("a,label\n" + "1,0\n" * 99)
    opened, original = [], Path.open
    monkeypatch.setattr(Path, "open", lambda self, *how: (opened.append(original(self, *how)), opened[-1])[1])
    with pytest.raises(ValueError, match="has no column") as error:
        load_data(tmp_path / "a.csv", target="z")
    assert opened and all(file.closed for file in opened) and error.traceback
