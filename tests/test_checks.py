"""Contract of bpgpu.checks: what is accepted (and not copied), what is refused, and what the refusal says."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bpgpu.checks import as_labels, as_matrix, as_numbers, as_targets, as_weights, nearest

f4, f8 = np.float32, np.float64
RULE: dict[Any, np.ndarray] = {
    f4: np.arange(6, dtype=f4).reshape(2, 3),
    f8: np.arange(6, dtype=f8).reshape(2, 3),
}


class OnlyArray:
    """Nothing but __array__."""

    def __init__(self, array: np.ndarray) -> None:
        self.array = array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self.array if dtype is None else self.array.astype(dtype)


class Sparse:
    nnz = 1

    def toarray(self) -> np.ndarray:
        return np.zeros((1, 1))


# nearest

ACTIVATIONS = ("identity", "relu", "tanh")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_nearest_returns_what_is_known(name: str) -> None:
    assert nearest(name, ACTIVATIONS, "activation") == name
    assert nearest(name, dict.fromkeys(ACTIVATIONS), "activation") == name
    assert nearest(name, iter(ACTIVATIONS), "activation") == name


@pytest.mark.parametrize(("name", "guess"), [("rleu", "relu"), ("RELU", "relu"), (" Tanh ", "tanh"), ("ident", "identity")])
def test_nearest_guesses(name: str, guess: str) -> None:
    with pytest.raises(ValueError) as error:
        nearest(name, ACTIVATIONS, "activation")
    assert str(error.value) == (f"unknown activation {name!r}; did you mean {guess!r}? Known: identity, relu, tanh")


@pytest.mark.parametrize("name", ["", "xyzzy"])
def test_nearest_without_a_guess(name: str) -> None:
    with pytest.raises(ValueError) as error:
        nearest(name, ACTIVATIONS, "loss")
    assert str(error.value) == f"unknown loss {name!r}. Known: identity, relu, tanh"


@pytest.mark.parametrize("name", [None, 3, ["relu"], b"relu", {}])
def test_nearest_demands_a_string(name: object) -> None:
    with pytest.raises(TypeError, match=r"activation must be a string, got .*Known: identity, relu, tanh"):
        nearest(name, ACTIVATIONS, "activation")


# as_matrix: accepted

FORMS = {
    "list": RULE[f8].tolist(),
    "tuple of lists": tuple(RULE[f8].tolist()),
    "list of arrays": list(RULE[f4]),
    "list of ints": [[0, 1, 2], [3, 4, 5]],
    "Fortran": np.asfortranarray(RULE[f4]),
    "transposed": RULE[f4].T.copy().T,
    "every other column": np.repeat(RULE[f4], 2, axis=1)[:, ::2],
    "every other row": np.repeat(RULE[f8], 2, axis=0)[::2],
    "reversed": RULE[f4][::-1, ::-1].copy()[::-1, ::-1],
    "broadcast": np.broadcast_to(RULE[f4], (1, 2, 3))[0],
    "big-endian float": RULE[f8].astype(">f8"),
    "big-endian int": RULE[f8].astype(">i2"),
    "float16": RULE[f8].astype(np.float16),
    "longdouble": RULE[f8].astype(np.longdouble),
    "masked array without a mask": np.ma.masked_array(RULE[f8]),
    "__array__": OnlyArray(RULE[f8]),
    "memoryview": memoryview(RULE[f8].data),
} | {dtype: RULE[f8].astype(dtype) for dtype in "bBhHiIlLqQfd"}


@pytest.mark.parametrize("dtype", [f4, f8])
@pytest.mark.parametrize("form", FORMS)
def test_matrix_accepts(form: str, dtype: Any) -> None:
    out = as_matrix(FORMS[form], dtype=dtype, width=3)
    assert type(out) is np.ndarray and out.dtype == dtype and out.dtype.isnative
    assert out.flags.c_contiguous and out.flags.aligned
    np.testing.assert_array_equal(out, RULE[dtype])


@pytest.mark.parametrize("dtype", [f4, f8])
def test_matrix_accepts_bools(dtype: Any) -> None:
    out = as_matrix(np.array([[True, False]]), dtype=dtype)
    assert out.dtype == dtype and out.tolist() == [[1, 0]]


@pytest.mark.parametrize("dtype", [f4, f8])
def test_matrix_aligns(dtype: Any) -> None:
    raw = np.frombuffer(b"\0" + RULE[dtype].tobytes(), dtype, offset=1).reshape(2, 3)
    assert not raw.flags.aligned
    out = as_matrix(raw, dtype=dtype)
    assert out.flags.aligned
    np.testing.assert_array_equal(out, RULE[dtype])


@pytest.mark.filterwarnings("ignore:the matrix subclass")
def test_matrix_accepts_numpy_matrix() -> None:
    assert type(as_matrix(np.asmatrix(RULE[f4]), dtype=f4)) is np.ndarray


def test_matrix_accepts_subnormals_and_extremes() -> None:
    X = np.array([[np.finfo(f4).smallest_subnormal, np.finfo(f4).max, np.finfo(f4).min, -0.0]], f4)
    assert as_matrix(X, dtype=f4).tobytes() == X.tobytes()
    assert as_matrix([[2**64 - 1]], dtype=f4)[0, 0] == f4(2**64)


@pytest.mark.parametrize("dtype", [f4, f8])
def test_matrix_passes_when_only_the_sum_overflows(dtype: Any) -> None:
    X = np.full((3, 4), np.finfo(dtype).max, dtype)
    assert as_matrix(X, dtype=dtype) is X
    X[1] *= -1  # partial sums may be inf - inf
    assert as_matrix(X, dtype=dtype) is X


# as_matrix: no copy


@pytest.mark.parametrize("dtype", [f4, f8])
def test_matrix_does_not_copy_what_is_right(dtype: Any, tmp_path: Path) -> None:
    X = RULE[dtype].copy()
    assert as_matrix(X, dtype=dtype) is X
    X.flags.writeable = False
    assert as_matrix(X, dtype=dtype) is X
    assert np.shares_memory(as_matrix(X[1:], dtype=dtype), X)
    assert np.shares_memory(as_matrix(OnlyArray(X), dtype=dtype), X)
    np.save(tmp_path / "X.npy", X)
    mapped = np.load(tmp_path / "X.npy", mmap_mode="r")
    assert np.shares_memory(as_matrix(mapped, dtype=dtype), mapped)
    assert not np.shares_memory(as_matrix(X, dtype=f8 if dtype == f4 else f4), X)


def test_matrix_allocates_nothing_when_all_is_well() -> None:
    X = np.ones((1000, 1000), f4)
    as_matrix(X, dtype=f4)
    tracemalloc.start()
    try:
        as_matrix(X, dtype=f4)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 100_000  # one bool for each entry were 1,000,000


def test_no_warning_of_numpy_leaks() -> None:
    with np.errstate(all="raise"):
        as_matrix(np.full((2, 2), 3e38, f4), dtype=f4)
        for bad in ([[1e39]], [[np.nan]], [[np.inf, -np.inf]]):
            with pytest.raises(ValueError):
                as_matrix(bad, dtype=f4)
        with pytest.raises(ValueError):
            as_labels([np.nan], n=1, classes=2)


def test_matrix_leaves_its_input_alone() -> None:
    X = np.asfortranarray(RULE[f8])
    before = X.copy()
    as_matrix(X, dtype=f4)[:] = 7
    np.testing.assert_array_equal(X, before)


# as_matrix: frames


def test_matrix_accepts_pandas() -> None:
    pd = pytest.importorskip("pandas")
    for frame in (
        pd.DataFrame({"a": [0, 3], "b": [1.0, 4.0], "c": [2, 5]}),
        pd.DataFrame(RULE[f4]),
        pd.DataFrame({"a": pd.array([0, 3], dtype="Int64"), "b": [1, 4], "c": pd.array([2, 5], dtype="Float64")}),
        pd.DataFrame(RULE[f8], index=["u", "v"], columns=["same", "same", "same"]),
    ):
        np.testing.assert_array_equal(as_matrix(frame, dtype=f4, width=3), RULE[f4])
    mixed = pd.DataFrame({"a": [0.5, 1.5], "b": [True, False], "c": [1, 2]})
    assert mixed.to_numpy().dtype == object
    assert as_matrix(mixed, dtype=f4).tolist() == [[0.5, 1, 1], [1.5, 0, 2]]


def test_matrix_refuses_pandas_text_dates_and_missing_values() -> None:
    pd = pytest.importorskip("pandas")
    with pytest.raises(TypeError, match=r"X\[0, 1\] is 'u' \(str\).*expected bools, integers or floats.*np.unique"):
        as_matrix(pd.DataFrame({"a": [1, 2], "b": ["u", "v"]}), dtype=f4)
    with pytest.raises(TypeError, match=r"X holds dates"):
        as_matrix(pd.DataFrame({"a": pd.to_datetime(["2020-01-01"])}), dtype=f4)
    with pytest.raises(TypeError, match=r"X\[1, 0\] is <NA>"):
        as_matrix(pd.DataFrame({"a": pd.array([1, None], dtype="Int64"), "b": [True, False]}), dtype=f4)
    with pytest.raises(ValueError, match=r"X\[1, 0\] is nan"):
        as_matrix(pd.DataFrame({"a": [1, None]}), dtype=f4)


def test_matrix_accepts_polars() -> None:
    pl = pytest.importorskip("polars")
    frame = pl.DataFrame({"a": [0, 3], "b": [1.0, 4.0], "c": [2, 5]})
    np.testing.assert_array_equal(as_matrix(frame, dtype=f4, width=3), RULE[f4])
    mixed = pl.DataFrame({"a": [0.5, 1.5], "b": [True, False]})
    assert as_matrix(mixed, dtype=f8).tolist() == [[0.5, 1], [1.5, 0]]
    with pytest.raises(ValueError, match=r"X\[1, 0\] is nan"):
        as_matrix(pl.DataFrame({"a": [1, None], "b": [2, 3]}), dtype=f4)
    with pytest.raises(TypeError, match=r"X\[0, 1\] is 'u' \(str\)"):
        as_matrix(pl.DataFrame({"a": [1, 2], "b": ["u", "v"]}), dtype=f4)


def test_labels_targets_weights_accept_series_and_columns() -> None:
    pd, pl = pytest.importorskip("pandas"), pytest.importorskip("polars")
    for column in ([0, 2, 1], [0.0, 2.0, 1.0]):
        for y in (
            pd.Series(column),
            pd.DataFrame({"y": column}),
            pl.Series(column),
            pl.DataFrame({"y": column}),
        ):
            labels = as_labels(y, n=3, classes=3)
            assert labels.dtype == np.int64 and labels.tolist() == [0, 2, 1]
            assert as_targets(y, n=3, width=1, dtype=f4).tolist() == [[0], [2], [1]]
            assert as_weights(y, n=3, dtype=f8).tolist() == [0, 2, 1]
    assert as_labels(pd.Series([1, 0], dtype="Int64"), n=2, classes=2).tolist() == [1, 0]
    assert as_labels(pd.Series([1, 0], dtype="category"), n=2, classes=2).tolist() == [1, 0]
    assert as_labels(pd.Series([True, False], index=[7, 3]), n=2, classes=2).tolist() == [1, 0]
    for y in (pd.Series(["u", "v"]), pl.Series(["u", "v"]), pd.Series(["u", "v"], dtype="category")):
        with pytest.raises(TypeError, match=r"^y holds (text|.*y\[0\] is 'u' \(str\)).*np.unique"):
            as_labels(y, n=2, classes=2)


# Refused by all: what is no array of numbers

REFUSED = [
    (np.array([[1, 2]], object), TypeError, r"Python objects, dtype object.*astype\(np.float32\)"),
    ([[1, None]], TypeError, r"\[0, 1\] is None \(NoneType\)"),
    ([[1, {}]], TypeError, r"\[0, 1\] is \{\} \(dict\)"),
    ([[2**70, 1]], TypeError, r"Python objects"),
    (np.zeros((2, 2), complex), TypeError, r"complex numbers, dtype complex128.*real and the imaginary"),
    ([["1", "2"]], TypeError, r"holds text, dtype <U1.*np\.unique"),
    ([[1, "a"]], TypeError, r"holds text"),
    ([[b"1"]], TypeError, r"holds text, dtype \|S1"),
    (np.zeros((2, 2), "M8[D]"), TypeError, r"holds dates.*days since"),
    (np.zeros((2, 2), "m8[s]"), TypeError, r"holds time spans.*timedelta64"),
    (np.zeros((2, 2), "f4,f4"), TypeError, r"holds records.*fields"),
    (None, TypeError, r"is of type NoneType; expected an array of numbers"),
    ({"a": [1]}, TypeError, r"is of type dict"),
    ((i for i in range(3)), TypeError, r"is of type generator"),
    ("abc", TypeError, r"holds text"),
    (Sparse(), TypeError, r"sparse matrix.*\.toarray\(\)"),
    (np.ma.masked_array([[1, 2]], [[False, True]]), ValueError, r"masked entries.*\.filled\("),
    ([[1, 2], [3]], ValueError, r"is no array of numbers \(.*\); expected rows of equal length"),
]


@pytest.mark.parametrize(("value", "kind", "message"), REFUSED, ids=lambda v: v if isinstance(v, str) else None)
def test_all_refuse_what_is_no_array_of_numbers(value: Any, kind: type[Exception], message: str) -> None:
    calls: list[Any] = [
        lambda: as_numbers(value, "V"),
        lambda: as_matrix(value, dtype=f4, name="V"),
        lambda: as_labels(value, n=2, classes=2, name="V"),
        lambda: as_targets(value, n=2, width=2, dtype=f4, name="V"),
        lambda: as_weights(value, n=2, dtype=f4, name="V"),
    ]
    for call in calls:
        with pytest.raises(kind, match=rf"^V.*{message}") as error:
            call()
        assert "\n" not in str(error.value)


def test_sparse_matrix_of_scipy_is_refused() -> None:
    sparse = pytest.importorskip("scipy.sparse")
    for X in (sparse.csr_matrix([[1.0]]), sparse.coo_array([[1.0]])):
        with pytest.raises(TypeError, match=r"X\.toarray\(\)"):
            as_matrix(X, dtype=f4)


def test_an_array_that_fails_to_become_one_is_refused() -> None:
    class Broken:
        def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
            raise RuntimeError("requires grad.\nuse detach")

    with pytest.raises(ValueError, match=r"^X is no array of numbers \(requires grad\)"):
        as_matrix(Broken(), dtype=f4)


# as_matrix: refused shapes and values


@pytest.mark.parametrize(
    ("X", "message"),
    [
        (np.zeros(3), r"shape \(3,\); expected 2-D.*X\.reshape\(1, -1\).*X\.reshape\(-1, 1\)"),
        ([], r"shape \(0,\); expected 2-D"),
        (np.float32(3), r"shape \(\); expected 2-D"),
        (3, r"shape \(\); expected 2-D.*\[\[number\]\]"),
        (np.zeros((2, 3, 4)), r"shape \(2, 3, 4\); expected 2-D.*X\.reshape\(len\(X\), -1\)"),
        (np.zeros((2, 3, 4, 5)), r"X\.reshape\(len\(X\), -1\)"),
        (np.zeros((0, 3)), r"shape \(0, 3\); expected at least one row"),
        (np.zeros((3, 0)), r"shape \(3, 0\); expected at least one row and one column"),
        ([[]], r"at least one row and one column"),
        (np.zeros((3, 2)), r"has 2 columns \(shape \(3, 2\)\); expected 5"),
    ],
)
def test_matrix_refuses_shapes(X: Any, message: str) -> None:
    with pytest.raises(ValueError, match=rf"^X .*{message}"):
        as_matrix(X, dtype=f4, width=5)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("source", [f4, f8, np.float16, ">f8"])
@pytest.mark.parametrize("dtype", [f4, f8])
def test_matrix_names_the_first_bad_value(value: float, source: Any, dtype: Any) -> None:
    X = np.zeros((5, 20), source)
    X[3, 17] = value
    X[4, 2] = np.nan
    with pytest.raises(ValueError, match=rf"^X\[3, 17\] is {value}; expected finite numbers"):
        as_matrix(X, dtype=dtype)
    with pytest.raises(ValueError, match=rf"^V\[17, 3\] is {value}"):
        as_matrix(X[:4].T, dtype=dtype, name="V")


def test_matrix_finds_infinities_that_cancel() -> None:
    with pytest.raises(ValueError, match=r"X\[0, 1\] is inf"):
        as_matrix([[0.0, np.inf, -np.inf]], dtype=f4)


def test_matrix_says_when_float32_is_too_small() -> None:
    X = [[1.0, 2.0], [-1e39, 3.0]]
    with pytest.raises(ValueError, match=r'^X\[1, 0\] is -1e\+39, too large for float32.*dtype="float64"'):
        as_matrix(X, dtype=f4)
    assert as_matrix(X, dtype=f8)[1, 0] == -1e39
    if np.finfo(np.longdouble).max > np.finfo(f8).max:
        with pytest.raises(ValueError, match=r"is 1e\+4000, too large for float64: scale it"):
            as_matrix(np.array([["1e4000"]]).astype(np.longdouble), dtype=f8)


@given(
    hnp.arrays(
        st.sampled_from([f4, f8]),
        hnp.array_shapes(min_dims=2, max_dims=2, max_side=9),
        elements=st.floats(width=32),
    ),
    st.sampled_from([f4, f8]),
    st.booleans(),
)
def test_matrix_passes_exactly_the_finite(X: np.ndarray, dtype: Any, transpose: bool) -> None:
    X = X.T if transpose else X
    if np.isfinite(X).all():
        np.testing.assert_array_equal(as_matrix(X, dtype=dtype), X)
    else:
        i, j = np.argwhere(~np.isfinite(X))[0]
        with pytest.raises(ValueError, match=rf"^X\[{i}, {j}\] is {X[i, j]!s};"):
            as_matrix(X, dtype=dtype)


# as_labels


@pytest.mark.parametrize("dtype", [*"bBhHiIlLqQefdg", ">i4", ">f8", ">u2"])
def test_labels_accept(dtype: str) -> None:
    y = np.array([0, 2, 1, 2], dtype)
    for form in (y, y[:, None], np.repeat(y, 3)[::3], y.tolist(), OnlyArray(y)):
        out = as_labels(form, n=4, classes=3)
        assert out.dtype == np.int64 and out.dtype.isnative and out.flags.c_contiguous
        assert out.shape == (4,) and out.tolist() == [0, 2, 1, 2]


def test_labels_accept_bools_and_negative_zero() -> None:
    assert as_labels([True, False], n=2, classes=2).tolist() == [1, 0]
    assert as_labels([-0.0], n=1, classes=1).tolist() == [0]
    assert as_labels(np.array([127], np.int8), n=1, classes=1000).tolist() == [127]


def test_labels_do_not_copy_what_is_right() -> None:
    y = np.array([0, 1, 2], np.int64)
    y.flags.writeable = False
    assert as_labels(y, n=3, classes=3) is y
    assert np.shares_memory(as_labels(y[:, None], n=3, classes=3), y)


@pytest.mark.parametrize(
    ("y", "message"),
    [
        ([0, 1, 3], r"^y\[2\] is 3; expected integer labels in 0\.\.2$"),
        ([0, -1, 3], r"^y\[1\] is -1; expected integer labels in 0\.\.2$"),
        ([0, 1.5, 9], r"^y\[1\] is 1\.5; "),
        ([0, 1, np.nan], r"^y\[2\] is nan; "),
        ([np.inf, 1, 2], r"^y\[0\] is inf; "),
        ([0, 1e300, 2], r"^y\[1\] is 1e\+300; "),
        (np.array([0, 1, 2**64 - 1], np.uint64), r"^y\[2\] is 18446744073709551615; "),
        (np.array([0, 1, -(2**63)]), r"^y\[2\] is -9223372036854775808; "),
        ([[0], [1], [7]], r"^y\[2\] is 7; "),
        ([0, 1], r"^y has 2 entries but X has 3 rows"),
        ([], r"^y has 0 entries but X has 3 rows"),
        (2, r"^y has shape \(\); expected \(3,\)"),
        (np.eye(3), r"^y has shape \(3, 3\); expected \(3,\).*y\.argmax\(axis=1\)"),
        ([[0, 1, 2]], r"^y has shape \(1, 3\)"),
        (np.zeros((3, 1, 1)), r"^y has shape \(3, 1, 1\)"),
    ],
)
def test_labels_refuse(y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_labels(y, n=3, classes=3)


@given(st.lists(st.integers(-3, 12), min_size=1), st.integers(1, 10), st.sampled_from(["i1", "i8", "f4", ">f8"]))
def test_labels_pass_exactly_the_valid(y: list[int], classes: int, dtype: str) -> None:
    bad = [i for i, label in enumerate(y) if not 0 <= label < classes]
    if bad:
        with pytest.raises(ValueError, match=rf"^y\[{bad[0]}\] is {y[bad[0]]}(\.0)?; .*0\.\.{classes - 1}$"):
            as_labels(np.array(y, dtype), n=len(y), classes=classes)
    else:
        assert as_labels(np.array(y, dtype), n=len(y), classes=classes).tolist() == y


# as_targets


def test_targets_accept() -> None:
    y = np.arange(3, dtype=f4)
    for form in (y, y[:, None], y.tolist(), y.astype(">i2"), np.repeat(y, 2)[::2]):
        out = as_targets(form, n=3, width=1, dtype=f4)
        assert out.shape == (3, 1) and out.dtype == f4 and out.flags.c_contiguous and out.ravel().tolist() == [0, 1, 2]
    assert np.shares_memory(as_targets(y, n=3, width=1, dtype=f4), y)
    Y = np.arange(6, dtype=f8).reshape(3, 2)
    assert as_targets(Y, n=3, width=2, dtype=f8) is Y
    assert as_targets(np.asfortranarray(Y), n=3, width=2, dtype=f4).flags.c_contiguous
    assert as_targets([[1, 2, 3]], n=1, width=3, dtype=f4).shape == (1, 3)


@pytest.mark.parametrize(
    ("y", "width", "message"),
    [
        ([1, 2, 3], 2, r"^y has shape \(3,\); expected \(3, 2\), as X has 3 rows"),
        ([1, 2], 1, r"^y has shape \(2,\); expected \(3, 1\) or \(3,\), as X has 3 rows"),
        (np.zeros((3, 4)), 2, r"^y has shape \(3, 4\); expected \(3, 2\)"),
        (np.zeros((2, 2)), 2, r"^y has 2 rows but X has 3 rows"),
        (np.zeros((3, 1, 1)), 1, r"^y has shape \(3, 1, 1\)"),
        (5, 1, r"^y has shape \(\)"),
        ([0, np.nan, 0], 1, r"^y\[1\] is nan; expected finite"),
        ([[0], [0], [np.inf]], 1, r"^y\[2, 0\] is inf"),
        ([0, 1e39, 0], 1, r"^y\[1\] is 1e\+39, too large for float32"),
    ],
)
def test_targets_refuse(y: Any, width: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_targets(y, n=3, width=width, dtype=f4)


# as_weights


def test_weights_accept() -> None:
    w = np.array([0, 0.5, 2], f4)
    assert as_weights(w, n=3, dtype=f4) is w
    for form in (w[:, None], w.tolist(), w.astype(">f8"), np.repeat(w, 2)[::2]):
        out = as_weights(form, n=3, dtype=f8)
        assert out.shape == (3,) and out.dtype == f8 and out.flags.c_contiguous and out.tolist() == [0, 0.5, 2]
    assert as_weights([True, False], n=2, dtype=f4).tolist() == [1, 0]
    assert as_weights([-0.0, 1], n=2, dtype=f4).tolist() == [0, 1]


@pytest.mark.parametrize(
    ("w", "message"),
    [
        ([1, -0.5, -2], r"^sample_weight\[1\] is -0\.5; expected weights of 0 or more"),
        ([0, 0, 0], r"^sample_weight is zero everywhere .*expected a positive weight"),
        ([0, 0, 1e-300], r"^sample_weight is zero everywhere \(as float32\)"),
        ([1, np.nan, 1], r"^sample_weight\[1\] is nan"),
        ([1, 1, np.inf], r"^sample_weight\[2\] is inf"),
        ([1, 1, 1e39], r"^sample_weight\[2\] is 1e\+39, too large for float32"),
        ([1, 1], r"^sample_weight has 2 entries but X has 3 rows"),
        (np.ones((3, 2)), r"^sample_weight has shape \(3, 2\); expected \(3,\), as X has 3 rows$"),
        (1.0, r"^sample_weight has shape \(\); expected \(3,\)"),
    ],
)
def test_weights_refuse(w: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        as_weights(w, n=3, dtype=f4)
