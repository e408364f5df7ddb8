"""The trace: what it holds is what both passes compute, and an explanation adds up to the gradient."""

from __future__ import annotations

import sys
import time
from typing import Any

import numpy as np
import pytest

from bpgpu import MLP
from bpgpu.explain import Delta, Explanation, OutputDelta

LOSSES = [  # loss, output activation
    ("cross_entropy", None), ("binary_cross_entropy", None), ("squared_error", "identity"), ("squared_error", "gelu"),
    ("absolute_error", "sigmoid"), ("huber", "tanh"),
]  # fmt: skip


def example(loss: str, output: str | None = None, n: int = 3, **options: Any) -> tuple[MLP, Any, Any]:
    rng = np.random.default_rng(7)
    net = MLP(
        [6, 9, 8, 4], activation=["tanh", "gelu"], loss=loss, output_activation=output, seed=2, dtype="float64", **options
    )
    y = rng.integers(0, 4, n) if loss == "cross_entropy" else rng.random((n, 4)) * (1 if "entropy" in loss else 5)
    return net, rng.standard_normal((n, 6)), y


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
@pytest.mark.parametrize(("loss", "output"), LOSSES)
def test_it_holds_what_the_passes_compute(loss: str, output: str | None, backend: str) -> None:
    net, X, y = example(loss, output, backend=backend)
    trace, passes = net.trace(X, y), net.forward(X)
    back = net.backward(passes, y)
    assert trace.loss == back.loss and np.isclose(trace.losses.sum(), trace.loss, rtol=1e-14)
    for l in range(3):
        for mine, theirs in (
            (trace.a[l], passes.a[l]), (trace.z[l], passes.z(l)), (trace.delta[l], back.delta[l]), (trace.dW[l], back.dW[l]),
            (trace.db[l], back.db[l]), (trace.weights[l], net.weights[l]), (trace.biases[l], net.biases[l]),
        ):  # fmt: skip
            assert np.array_equal(mine, theirs)
    assert len(trace.gain) == (2 if loss == "cross_entropy" else 3)
    np.testing.assert_allclose(trace.gain[0], 1 - np.tanh(trace.z[0]) ** 2, rtol=1e-12)


def test_it_stays_when_the_network_learns() -> None:
    net, X, y = example("cross_entropy")
    trace = net.trace(X, y)
    before = repr(trace), repr(trace.explain(0, 1, 2)), trace.weights[1].copy()
    net.fit(X, y, epochs=3)
    assert not np.array_equal(net.weights[1], before[2]) and np.array_equal(trace.weights[1], before[2])
    assert (repr(trace), repr(trace.explain(0, 1, 2))) == before[:2]


def test_one_example_and_a_batch_of_it() -> None:
    for loss, output in LOSSES:
        net, X, y = example(loss, output, n=1)
        one, batch = net.trace(X[0], y[0]), net.trace(X, y)
        assert one.loss == batch.loss and all(np.array_equal(a, b) for a, b in zip(one.dW, batch.dW, strict=True))


# -- explain --------------------------------------------------------------------------------------------------------------


def adds_up(e: Explanation) -> None:
    """Every line is an equation that holds, and the units followed were named by the line above them."""
    named = {e.o}
    layer = e.layer
    following: set[int] = set()
    for step in e.steps:
        if step.layer > layer:
            named, following, layer = following, set(), step.layer
        assert step.unit in named
        if isinstance(step, Delta):
            assert 0 <= step.share <= 1 + 1e-12 and (step.others > 0 or step.rest == 0)
            total = sum(t.weight * t.delta for t in step.terms) + step.rest
            assert step.value == pytest.approx(step.gain * total, rel=1e-11, abs=1e-15)
            following |= {t.unit for t in step.terms}
        else:
            assert step.value == pytest.approx(step.scale * step.slope * (1 if step.gain is None else step.gain), rel=1e-11)
    assert isinstance(e.steps[-1], OutputDelta)


@pytest.mark.parametrize("terms", [1, 3, 100])
@pytest.mark.parametrize(("loss", "output"), LOSSES)
def test_an_explanation_adds_up_to_the_gradient(loss: str, output: str | None, terms: int) -> None:
    net, X, y = example(loss, output)
    trace = net.trace(X, y)
    for layer, i, o in ((0, 5, 8), (1, 0, 3), (2, 7, 1), (-1, -1, -1)):
        parts = [trace.explain(layer, i, o, example=n, terms=terms) for n in range(3)]
        for e in parts:
            adds_up(e)
        assert sum(e.gradient for e in parts) == pytest.approx(float(trace.dW[layer][i, o]), rel=1e-12, abs=1e-16)
        followed = [sum(s.layer == l for s in parts[0].steps) for l in range(3)]
        assert all(count <= terms for count in followed)


def test_all_terms_are_the_whole_sum_and_the_largest_come_first() -> None:
    net, X, y = example("cross_entropy")
    trace = net.trace(X, y)
    whole, few = (trace.explain(0, 0, 0, terms=terms).steps[0] for terms in (8, 3))
    assert isinstance(whole, Delta) and isinstance(few, Delta)
    assert whole.others == 0 and whole.rest == 0 and whole.share == pytest.approx(1) and len(whole.terms) == 8
    sizes = [abs(t.value) for t in whole.terms]
    assert sizes == sorted(sizes, reverse=True) and few.terms == whole.terms[:3] and few.others == 5
    assert few.share == pytest.approx(sum(sizes[:3]) / sum(sizes)) and few.rest == pytest.approx(
        sum(t.value for t in whole.terms[3:])
    )
    assert f"and 5 others = {few.rest:.4g}; those above carry {few.share:.1%} of the magnitude" in str(few)


def test_the_text_of_an_explanation() -> None:
    """Small enough to be worked out by hand: 1 -> 1 -> 1, identity, C = (a - y)^2 / 2."""
    net = MLP([1, 1, 1], activation="identity", loss="squared_error", dtype="float64")
    net.theta = [2.0, 3.0, 0.0, 0.0]
    text = str(net.trace([5.0], [20.0]).explain(0, 0, 0))
    assert text.splitlines() == [
        "dC/dw[0][0, 0] = a[0][0] * delta[0][0] = 5 * 30 = 150",
        "delta[0][0] = f'(z) * sum_k w[0, k] delta[1][k] = 1 * 30 = 30",
        "    k = 0               3 * 10         = 30",
        "delta[1][0] = scale * (a - y) * f'(z) = 1 * 10 * 1 = 10   (a = 30, y = 20)",
    ]


@pytest.mark.parametrize("bad", [(3, 0, 0), (0, 6, 0), (0, 0, 9), (-4, 0, 0), (0, 0, 0.5)])
def test_places_that_are_none(bad: tuple[int, int, int]) -> None:
    net, X, y = example("cross_entropy")
    trace = net.trace(X, y)
    with pytest.raises(IndexError, match="there are .* counted from 0"):  # noqa: RUF043
        trace.explain(*bad)
    with pytest.raises(IndexError, match="3 examples"):
        trace.explain(0, 0, 0, example=3)
    with pytest.raises(IndexError, match="there are 3 examples, counted from 0; got 3"):
        trace.table(3)
    with pytest.raises(ValueError, match="terms is 0"):
        trace.explain(0, 0, 0, terms=0)


def test_one_is_no_plural() -> None:
    net = MLP([2, 3, 1], loss="squared_error", seed=1)
    trace = net.trace([1.0, 2.0], 3.0)
    for bad, message in (
        ({"example": 1}, "there is 1 example, counted from 0; got 1"),
        ({"layer": 1, "o": 1}, "there is 1 unit of layer 1, counted from 0; got 1"),
        ({"layer": 2}, "there are 2 layers, counted from 0; got 2"),
    ):
        with pytest.raises(IndexError) as error:
            trace.explain(**{"layer": 0, "i": 0, "o": 0} | bad)
        assert str(error.value) == message
    assert "and 1 other; those shown" in trace.table(units=2) and "and 2 others; those shown" in trace.table(units=1)
    net = MLP([2, 3, 4, 2])
    text = str(net.trace([1.0, 2.0], 1).explain(0, 0, 0, terms=3))
    assert "    and 1 other = " in text and "1 others" not in text


def test_numbers_that_are_not_finite_are_shown_without_a_warning() -> None:
    net, X, y = example("cross_entropy")
    net.weights[1][0, :2] = np.inf, -np.inf
    with np.errstate(all="ignore"):
        trace = net.trace(X, y)
    assert "nan" in str(trace.explain(0, 1, 2)) + str(trace)


# -- table, dict and frame ------------------------------------------------------------------------------------------------


def test_the_table_has_every_unit_of_a_small_network_and_its_numbers() -> None:
    net, X, y = example("cross_entropy")
    trace = net.trace(X, y)
    table = trace.table(1, units=9)
    lines = table.splitlines()
    assert lines[0] == f"example 1 of 3 through 6-9-8-4, cross_entropy: loss {trace.losses[1]:.6g}"
    rows = [line.split() for line in lines if line.split() and line.split()[0].isdigit()]
    assert len(rows) == 9 + 8 + 4 and "others" not in table
    expected = [trace.z[1][1, 4], trace.a[2][1, 4], trace.gain[1][1, 4], trace.delta[1][1, 4]]
    np.testing.assert_allclose(np.array(rows[9 + 4][1:], float), expected, rtol=1e-3)
    assert rows[-1][3] == "-" and f"|dL/dW| = {np.linalg.norm(trace.dW[2]):.4g}" in lines[-1]
    assert repr(trace) == str(trace) == trace.table(0)


def test_the_table_of_a_large_network_keeps_the_largest() -> None:
    net = MLP([50, 2000, 3], seed=1)
    trace = net.trace(np.ones(50), 2)
    lines = trace.table().splitlines()
    assert len(lines) < 30 and max(map(len, lines)) < 100
    delta = abs(trace.delta[0][0].astype(float))
    shown = [int(line.split()[0]) for line in lines[4:12]]
    assert set(delta[shown]) == set(np.sort(delta)[-8:])
    assert f"1992 others; those shown carry {delta[shown].sum() / delta.sum():.1%}" in lines[12]


def test_dict_and_frame() -> None:
    pytest.importorskip("pandas")
    net, X, y = example("cross_entropy")
    trace = net.trace(X, y)
    d = trace.to_dict()
    assert d["loss"] == trace.loss and np.array_equal(d["x"], X) and np.array_equal(d["y"].argmax(1), y)
    assert [layer["activation"] for layer in d["layers"]] == ["tanh", "gelu", "softmax"] and d["layers"][2]["gain"] is None
    assert np.array_equal(d["layers"][1]["dW"], trace.dW[1])
    frame = trace.to_frame()
    assert list(frame.columns) == ["example", "layer", "unit", "z", "a", "gain", "delta"] and len(frame) == 3 * (9 + 8 + 4)
    row = frame[(frame.example == 2) & (frame.layer == 1) & (frame.unit == 6)].iloc[0]
    assert (row.z, row.a, row.gain, row.delta) == (
        trace.z[1][2, 6], trace.a[2][2, 6], trace.gain[1][2, 6], trace.delta[1][2, 6]
    )  # fmt: skip
    assert frame[frame.layer == 2].gain.isna().all()


def test_a_frame_of_weights() -> None:
    pytest.importorskip("pandas")
    net, X, y = example("cross_entropy")
    trace = net.trace(X, y)
    frame = trace.to_frame("weights")
    assert list(frame.columns) == ["layer", "input", "unit", "w", "dw"] and len(frame) == 6 * 9 + 9 * 8 + 8 * 4
    row = frame[(frame.layer == 1) & (frame.input == 7) & (frame.unit == 5)].iloc[0]
    assert (row.w, row.dw) == (net.weights[1][7, 5], trace.dW[1][7, 5])
    with pytest.raises(ValueError, match="unknown of 'weight'; did you mean 'weights'"):
        trace.to_frame("weight")


def test_what_is_no_example_or_no_place_of_one() -> None:
    net, X, y = example("cross_entropy")
    trace = net.trace(X, y)
    with pytest.raises(IndexError, match="there are 3 examples, counted from 0; got 3"):
        trace.table(3)
    for units in (-1, 0, 2.5):
        with pytest.raises(ValueError, match=f"units is {units}; expected a positive integer"):
            trace.table(units=units)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"x has shape \(\); expected 2-D"):
        net.trace(3.0, 1)
    with pytest.raises(ValueError, match=r"x has 5 columns .* expected 6"):
        net.trace(X[:, :5], y)
    assert trace != net.trace(X, y)  # two are two, and no error


def test_a_sparse_batch() -> None:
    scipy_sparse = pytest.importorskip("scipy.sparse")
    net, X, y = example("cross_entropy")
    X[X < 0.5] = 0
    for x in (scipy_sparse.csr_array(X), scipy_sparse.csc_matrix(X)):
        assert repr(net.trace(x, y)) == repr(net.trace(X, y))


def test_without_pandas_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    net, X, y = example("cross_entropy")
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"to_frame needs pandas: .*'bpgpu\[pandas\]', or use to_dict"):
        net.trace(X, y).to_frame()


def test_twelve_million_parameters_well_under_a_second() -> None:
    net = MLP([784, 2500, 2000, 1500, 1000, 500, 10], activation="tanh")
    x = np.random.default_rng(0).random(784)
    seconds = []
    for _ in range(3):  # the first one compiles; the machine may be busy
        begun = time.perf_counter()
        text = str(net.trace(x, 3).explain(0, 400, 17))
        seconds.append(time.perf_counter() - begun)
    assert min(seconds) < 0.5 and len(text.splitlines()) < 150


def test_what_does_not_fit_is_refused_before_any_work() -> None:
    net = MLP([1000, 3000, 10])
    X = np.lib.stride_tricks.as_strided(np.zeros(1, "f4"), (100_000, 1000), (0, 0))  # no memory of its own
    with pytest.raises(MemoryError, match=r"the trace of 100,000 examples would need 6\.4\d? GB; .*: trace fewer of them"):
        net.trace(X, np.zeros(100_000, int))
