"""Tables: CSV and Parquet files, read some rows at a time, one column of them the target."""

from __future__ import annotations

import csv
import gzip
import io
import math
import operator
import re
import zlib
from array import array as growing
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np

from .streams import BLOCK_BYTES, Spool

_TARGET_NAMES = ("label", "target", "class", "y")
_ROWS = 1 << 14  # that are converted at a time, if they take no more than BLOCK_BYTES

Table = tuple[np.ndarray, "np.ndarray | None", "tuple[str, ...] | None"]  # X, y, classes


class Target:
    """A target column as it comes: text and integers are labels, other numbers targets; float(), int() decide what is what."""

    def __init__(self) -> None:
        self.codes: dict[str, int] = {}  # of the cells as they are spelled, unless they are sure to be targets
        self.coded, self.numbers = growing("q"), growing("d")
        self.text: tuple[Any, str] | None = None  # the first cell that is no number, and where
        self.empty: tuple[Any, str] | None = None
        self.infinite: tuple[Any, str] | None = None
        self.real = False  # a number with a fraction has been seen

    def add(self, cell: str, where: Any) -> None:
        number = _number(cell)
        if number is None:
            self.text = self.text or (where, cell)
            if not cell:
                self.empty = self.empty or (where, cell)
        elif not math.isfinite(number):
            self.infinite = self.infinite or (where, cell)
        elif number % 1 > 0 and not self.real:
            self.real = True
            self.codes.clear()
        self.numbers.append(math.nan if number is None else number)
        if not self.real:
            self.coded.append(self.codes.setdefault(cell, len(self.codes)))

    def result(self, bad: Callable[[Any, str, str], ValueError]) -> tuple[np.ndarray, tuple[str, ...] | None]:
        """Labels (n,) int64 and their names, or float64 targets (n,) and None.  `bad` makes the error of a cell."""
        keys: list[Any] = list(self.codes)
        if self.text is None:
            try:
                keys = [int(key) for key in keys]
            except ValueError:
                self.real = True
        wrong = [cell for cell in (self.infinite, self.text if self.real else self.empty) if cell is not None]
        if wrong:
            expected = "a finite number, as elsewhere in this column" if self.real else "a label or a number"
            raise bad(*min(wrong, key=operator.itemgetter(0)), expected)
        if self.real:
            return np.array(self.numbers), None
        names = sorted(set(keys))
        place = {name: code for code, name in enumerate(names)}
        return np.array([place[key] for key in keys], np.int64)[np.array(self.coded)], tuple(map(str, names))


# CSV


def load_csv(path: Path, target: str | int | None, labels: bool) -> Table:
    with closing(_csv_rows(path)) as rows:  # also when an error ends it halfway
        return _csv_table(path, rows, target, labels)


def _csv_table(path: Path, rows: Iterator[tuple[int, list[str]]], target: str | int | None, labels: bool) -> Table:
    head = list(islice(rows, 2)) or [(1, [])]
    first, second = head[0][1], head[-1][1]
    width, header = len(first), [cell.strip() for cell in first]
    if target in header or _is_header(first, second):
        head.pop(0)
    else:
        header = []
    t = _target_column(path, header or list(map(str, range(width))), target, labels)
    features = [column for column in range(width) if column != t]
    if not features:
        found = f"has {width} column" if width else "is empty"
        raise ValueError(f"{path} {found}; expected a target column and at least one column of numbers")

    def bad(line: int, column: int, cell: str, expected: str) -> ValueError:
        title = f" ({header[column]!r})" if header else ""
        what = repr(cell.strip()) if cell.strip() else "empty"
        return ValueError(f"{path} line {line}, column {column + 1}{title} is {what}; expected {expected}")

    def keep() -> None:
        """The rows read so far as float32."""
        numbers = np.frombuffer(values).reshape(len(lines), -1)
        with np.errstate(over="ignore"):
            block = numbers.astype(np.float32)
        if not np.isfinite(block).all():
            i, j = np.argwhere(~np.isfinite(block))[0]
            raise bad(lines[i], features[j], f"{numbers[i, j]:g}", "a finite float32 number")
        X.append(block)

    X, y, values, lines = Spool(), Target(), growing("d"), list[int]()
    at_once = max(1, min(_ROWS, BLOCK_BYTES // (8 * width)))
    for line, row in chain(head, rows):
        if len(row) != width:
            raise ValueError(f"{path} line {line} has {len(row)} cells; expected {width} as in the first")
        lines.append(line)
        if t is not None:
            y.add(row.pop(t).strip(), line)
        try:
            if "_" in "".join(row):  # which float() would skip: 1_000 is text elsewhere
                raise ValueError
            values.extend(map(float, row))
        except ValueError:
            j = next(j for j, cell in enumerate(row) if _number(cell) is None)
            raise bad(line, features[j], row[j], "a number") from None
        if len(lines) == at_once:
            keep()
            values, lines = growing("d"), []
    if lines:
        keep()
    if not X.rows:
        raise ValueError(f"{path} has a header but no rows; expected rows of numbers below it")
    if t is None:
        return X.array(), None, None
    return X.array(), *y.result(lambda line, cell, expected: bad(line, t, cell, expected))


def _csv_rows(path: Path) -> Generator[tuple[int, list[str]], None, None]:
    """Number and cells of each line not blank, cut at commas, semicolons or tabs as the first line is."""
    with path.open("rb") as file:
        try:
            raw: Any = file
            if file.read(2) == b"\x1f\x8b":
                raw = gzip.GzipFile(fileobj=file)
                file.seek(0)
                while raw.read(1 << 20):  # to its end, where it may be found to be damaged
                    pass
            raw.seek(0)
            text = io.TextIOWrapper(raw, "utf-8-sig", newline="")
            blank: list[str] = []
            first = next((line for line in text if line.strip("\r\n") or blank.append(line)), "")  # type: ignore[func-returns-value]
            plain = re.sub(r'"[^"]*"', "", first)
            lines = chain(blank, [first] if first else [], text)
            reader = csv.reader(lines, delimiter=max(",;\t", key=plain.count), strict=True)
            yield from ((reader.line_num, row) for row in reader if row)
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} is not UTF-8 text ({error}); save it as UTF-8") from error
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{path} is a truncated or corrupt gzip file ({error}): fetch it again") from error
        except csv.Error as error:
            raise ValueError(f"{path} line {reader.line_num} is no line of a CSV file ({error})") from error


def _number(cell: str) -> float | None:
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None


def _is_header(first: list[str], second: list[str]) -> bool:
    """No cell of the first line is a number; or those that are count 0, 1, 2, ... (or 1, 2, 3, ...) as column
    numbers do, and another is text over a number or is the usual name of a target."""
    numbers = [cell.strip() for cell in first if _number(cell) is not None]
    counts = [[str(start + i) for i in range(len(numbers))] for start in (0, 1)]
    titles = (
        a.strip().lower() in _TARGET_NAMES or (a.strip() and _number(a) is None and _number(b) is not None)
        for a, b in zip(first, second, strict=False)
    )
    return not numbers or (numbers in counts and any(titles))


def some(names: list[str]) -> str:
    return ", ".join(names[:8]) + ", ..." * (len(names) > 8) or "nothing"


def _target_column(path: Path, header: list[str], target: str | int | None, labels: bool) -> int | None:
    """The index of the target column; None where there is none and labels are not demanded."""
    width = len(header)
    if isinstance(target, str) and target not in header and target.isdigit():
        target = int(target)  # as the command line gives it
    if isinstance(target, str):
        if target not in header and labels:
            raise ValueError(f"{path} has no column {target!r}; its columns are {some(header)}")
        return header.index(target) if target in header else None
    if target is not None:
        if not -width <= operator.index(target) < width:
            raise ValueError(f"target={target} is no column of {path}; expected 0..{width - 1} or a name")
        return operator.index(target) % width
    names = [name.lower() for name in header]
    return next((names.index(name) for name in _TARGET_NAMES if name in names), width - 1 if labels else None)


# Parquet


def load_parquet(path: Path, target: str | int | None, labels: bool) -> Table:
    try:
        import pyarrow as arrow
        from pyarrow import parquet
    except ImportError as error:
        mend = "python -m pip install 'bpgpu[parquet]'"
        raise ImportError(f"Parquet files need the package pyarrow ({error}); {mend}") from error
    try:
        file = parquet.ParquetFile(path)
    except arrow.ArrowInvalid as error:
        raise ValueError(f"{path} is no Parquet file, or not a whole one: {error}") from error
    with file:
        header = file.schema_arrow.names
        t = _target_column(path, header, target, labels)
        features = [column for column in range(len(header)) if column != t]
        if not features:
            raise ValueError(f"{path} has {len(header)} column; expected a target column and at least one column of numbers")
        for column in features:
            kind = file.schema_arrow.field(column).type
            if not (arrow.types.is_integer(kind) or arrow.types.is_floating(kind) or arrow.types.is_boolean(kind)):
                raise ValueError(f"{path} column {header[column]!r} holds {kind}; expected numbers")
        X, y = Spool(), Target()
        for batch in file.iter_batches(max(1, BLOCK_BYTES // (4 * len(header)))):
            block = np.empty((len(batch), len(features)), np.float32)
            for j, column in enumerate(features):
                with np.errstate(over="ignore"):
                    block[:, j] = batch.column(column).to_numpy(zero_copy_only=False)
            if not np.isfinite(block).all():
                i, j = (int(index) for index in np.argwhere(~np.isfinite(block))[0])
                given = batch.column(features[j])[i].as_py()
                where = f"{path} row {X.rows + i}, column {header[features[j]]!r}"
                raise ValueError(f"{where} is {'empty' if given is None else given}; expected a finite float32 number")
            if t is not None:
                for i, value in enumerate(batch.column(t).to_pylist(), X.rows):
                    y.add("" if value is None else str(value + 0 if isinstance(value, bool) else value), i)
            X.append(block)
    arrow.default_memory_pool().release_unused()
    if not X.rows:
        raise ValueError(f"{path} has no rows; expected rows of numbers")
    if t is None:
        return X.array(), None, None

    def bad(row: int, cell: str, expected: str) -> ValueError:
        return ValueError(f"{path} row {row}, column {header[t]!r} is {cell or 'empty'}; expected {expected}")

    return X.array(), *y.result(bad)
