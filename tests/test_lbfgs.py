"""L-BFGS through SciPy: minima that are known, the penalty, and what it refuses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bpgpu import MLP, Diverged, History, fit_lbfgs

pytest.importorskip("scipy")


def data(n: int = 80) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, n)
    return np.eye(3, 4)[y] + rng.standard_normal((n, 4)), y


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_ridge_regression_has_a_formula(backend: str) -> None:
    """No hidden layer, squares: (X'X / n + decay I) w = X'y / n, the bias without a penalty."""
    X, _ = data()
    y = X @ np.array([1.0, -2.0, 0.5, 3.0]) + 0.7 + 0.1 * np.random.default_rng(1).standard_normal(80)
    weight = np.random.default_rng(2).random(80) + 0.5
    for share, sample_weight in ((False, None), (True, weight)):
        w = np.ones(80) if sample_weight is None else sample_weight
        net = MLP([4, 1], loss="squared_error", dtype="float64", backend=backend)
        history = fit_lbfgs(
            net, X, y, max_iter=500, tol=1e-10, weight_decay=0.3, average_penalties=share, sample_weight=sample_weight
        )
        decay = 0.3 / w.sum() if share else 0.3
        centred, target = X - w @ X / w.sum(), y - w @ y / w.sum()
        solution = np.linalg.solve((w * centred.T) @ centred / w.sum() + decay * np.eye(4), (w * centred.T) @ target / w.sum())
        np.testing.assert_allclose(net.weights[0][:, 0], solution, rtol=1e-4)
        np.testing.assert_allclose(net.biases[0], w @ (y - X @ solution) / w.sum(), rtol=1e-4)
        value = net.gradient(X, y, sample_weight=sample_weight)[0] + decay / 2 * np.sum(net.weights[0] ** 2)
        assert history.loss[-1] == pytest.approx(value, rel=1e-12) and len(history.loss) == net.epochs_trained


def test_a_network_learns_and_the_value_falls() -> None:
    X, y = data()
    net = MLP([4, 12, 3], activation="tanh", dtype="float64")
    history = fit_lbfgs(net, X, y, max_iter=200, weight_decay=1e-3)
    assert (np.diff(history.loss) <= 0).all() and history.loss[-1] < 0.3 * history.loss[0]
    g = net.gradient(X, y)[1]
    g[: 4 * 12 + 12 * 3] += 1e-3 * net.theta[: 4 * 12 + 12 * 3]
    assert abs(g).max() < 1e-2


def test_float32_does_it_too() -> None:
    X, y = data()
    net = MLP([4, 12, 3], activation="tanh")
    before = net.evaluate(X, y)[0]
    fit_lbfgs(net, X, y, max_iter=50)
    assert net.theta.dtype == np.float32 and net.evaluate(X, y)[0] < 0.5 * before


def test_an_error_leaves_the_last_whole_iteration() -> None:
    seen: list[tuple[int, float]] = []

    def look(history: History) -> None:
        seen.append((len(history.loss), net.gradient(X, y)[0]))
        if len(seen) == 4:
            raise KeyError("mine")

    (X, y), net, same = data(), MLP([4, 12, 3], dtype="float64"), MLP([4, 12, 3], dtype="float64")
    with pytest.raises(KeyError, match="mine"):
        fit_lbfgs(net, X, y, callback=look)
    history = fit_lbfgs(same, X, y, max_iter=4)
    assert [number for number, _ in seen] == [1, 2, 3, 4] and [loss for _, loss in seen] == pytest.approx(history.loss)
    assert np.array_equal(net.theta, same.theta) and net.epochs_trained == same.epochs_trained == 4


@pytest.mark.parametrize(("x", "y"), [(1e30, 1e30), (1e25, 1.0), (1.0, 1e25)])
def test_a_loss_that_is_not_finite_is_said(x: float, y: float) -> None:
    X = data()[0].astype("f4")
    net = MLP([4, 8, 1], loss="squared_error")
    before = net.theta.copy()
    with pytest.raises(Diverged, match=r"no finite number after \d+ iterations, .*: scale X and y"):
        fit_lbfgs(net, X * x, X[:, 0] * y)
    assert np.array_equal(net.theta, before) and net.epochs_trained == 0


def test_a_gradient_that_is_not_finite_is_said() -> None:
    """The loss is: 1e25 in X come from a unit whose weight is 1e-20."""
    net = MLP([1, 1], loss="squared_error")
    net.theta = np.full(2, 1e-20)
    with pytest.raises(Diverged, match="no finite number after 0 iterations"):
        fit_lbfgs(net, np.full((5, 1), 1e25), np.full(5, 1e15))


def test_without_scipy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "scipy.optimize", None)
    with pytest.raises(ImportError, match=r"bpgpu\[scipy\]"):
        fit_lbfgs(MLP([4, 3]), *data())


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "iterations": (lambda: fit_lbfgs(MLP([4, 3]), *data(), max_iter=0), "max_iter is 0"),
    "tol": (lambda: fit_lbfgs(MLP([4, 3]), *data(), tol=-1), "tol is -1"),
    "decay": (lambda: fit_lbfgs(MLP([4, 3]), *data(), weight_decay=float("nan")), "weight_decay is nan"),
    "width": (lambda: fit_lbfgs(MLP([5, 3]), *data()), "X has 4 columns"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options(name: str) -> None:
    with pytest.raises(ValueError, match=BAD[name][1]):
        BAD[name][0]()
