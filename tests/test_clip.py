"""Gradient clipping by norm and by value, and weights of bounded length: bits, textbook and errors."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from conftest import cpu_backend

from bpgpu import MLP, SGD, Adam, Optimizer, get_backend
from bpgpu.backend import Backend

Array = np.ndarray[Any, Any]


def rounded_sum_of_squares(x: Array) -> Array:
    """Chunk by chunk in float64, exact for what the tests use it for."""
    return np.array([np.sum(x[c : c + 256].astype("f8") ** 2) for c in range(0, len(x), 256)])


@pytest.mark.parametrize("length", [1, 255, 256, 257, 4096, 4097, 5000, 20_000, 70_000])
def test_sums_of_squares_are_exact_for_integers(
    length: int, any_backend: Backend, dtype: np.dtype, rng: np.random.Generator
) -> None:
    x, b = rng.integers(-9, 10, length).astype(dtype), any_backend
    sums = b.asarray(np.full(-(-length // 256), np.nan, dtype))
    b.squares(b.asarray(x), sums)
    assert np.array_equal(b.to_numpy(sums), rounded_sum_of_squares(x))


def test_sums_of_squares_are_the_same_bits(exact_cuda: Backend, dtype: np.dtype, rng: np.random.Generator) -> None:
    for length in (1, 300, 4096 * 3 + 700):
        x = (rng.standard_normal(length) * 10.0 ** rng.integers(-6, 6, length)).astype(dtype)
        results = []
        for b in (cpu_backend(1), cpu_backend(3), exact_cuda):
            sums = b.asarray(np.zeros(-(-length // 256), dtype))
            b.squares(b.asarray(x), sums)
            results.append(b.to_numpy(sums))
            np.testing.assert_allclose(results[-1], rounded_sum_of_squares(x), rtol=1e-4 if dtype == np.float32 else 1e-13)
        by_product = [
            cpu_backend(1).dense_forward(x[None, c : c + 256], x[c : c + 256, None], np.zeros(1, dtype))
            for c in range(0, length, 256)
        ]
        assert np.array_equal(results[0], np.ravel(by_product)), "acc = fma(x, x, acc), as a product has it"
        assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2])


@pytest.mark.parametrize(("norm", "value"), [(1.0, np.inf), (np.inf, 0.5), (2.0, 0.1), (1e9, 1e9)])
def test_clip(norm: float, value: float, any_backend: Backend, dtype: np.dtype, rng: np.random.Generator) -> None:
    b, g = any_backend, rng.standard_normal(1000).astype(dtype)
    total = np.array([np.sum(g.astype("f8") ** 2)], dtype)
    clipped = b.asarray(g.copy())
    b.clip(clipped, b.asarray(np.array([norm, value], dtype)), b.asarray(total))
    length = np.sqrt(total[0])
    expected = np.clip(g * (dtype.type(norm) / length if length > norm else 1), -dtype.type(value), dtype.type(value))
    assert np.array_equal(b.to_numpy(clipped), expected.astype(dtype))


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (300, 70), (700, 129)])
def test_max_norm(shape: tuple[int, int], exact_cuda: Backend, dtype: np.dtype, rng: np.random.Generator) -> None:
    W = rng.standard_normal(shape).astype(dtype)
    W[:, ::3] *= dtype.type(0.01)
    limit = np.array([np.sqrt(shape[0]) / 2], dtype)
    results = []
    for b in (cpu_backend(1), cpu_backend(3), exact_cuda, get_backend("numpy")):
        moved = b.asarray(W.copy())
        b.max_norm(moved, b.asarray(limit))
        results.append(b.to_numpy(moved))
    norms = np.linalg.norm(W.astype("f8"), axis=0)
    expected = W * np.minimum(1, limit / norms)
    for got in results:
        np.testing.assert_allclose(got, expected, rtol=1e-5 if dtype == np.float32 else 1e-13)
    assert np.array_equal(results[0], results[1]) and np.array_equal(results[0], results[2]), "CPU and CUDA"
    short = norms < limit
    assert np.array_equal(results[0][:, short], W[:, short])


def data(n: int = 40) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, n)
    return 2 * np.eye(3, 6)[y] + rng.standard_normal((n, 6)), y


def network(**options: Any) -> MLP:
    return MLP([6, 9, 5, 3], **{"activation": "tanh", "seed": 1, "dtype": "float64", **options})


def by_norm(g: Array) -> Array:
    return g * min(1, 0.3 / np.linalg.norm(g))


CASES: dict[str, tuple[Callable[[], Optimizer], Callable[[Array], Array], float]] = {
    "norm": (lambda: SGD(0.5, clip_norm=0.3), by_norm, np.inf),
    "value": (lambda: SGD(0.5, clip_value=0.01), lambda g: np.clip(g, -0.01, 0.01), np.inf),
    "both": (lambda: SGD(0.5, clip_norm=0.3, clip_value=0.05), lambda g: np.clip(by_norm(g), -0.05, 0.05), np.inf),
    "a norm that is never reached": (lambda: SGD(0.5, clip_norm=1e6), lambda g: g, np.inf),
    "max_norm": (lambda: SGD(0.5, max_norm=0.8), lambda g: g, 0.8),
    "all": (lambda: SGD(0.5, clip_norm=0.3, max_norm=0.8), by_norm, 0.8),
}


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
@pytest.mark.parametrize("name", CASES)
def test_steps_are_the_textbooks(name: str, backend: str) -> None:
    make, clip, longest = CASES[name]
    (X, y), net, optimizer, by_hand = data(), network(backend=backend), make(), network()
    for _ in range(2):
        for s in range(0, 40, 16):
            by_hand.theta = by_hand.theta - 0.5 * clip(by_hand.gradient(X[s : s + 16], y[s : s + 16])[1])
            for W in by_hand.weights:
                W *= np.minimum(1, longest / np.linalg.norm(W, axis=0))
    for s in range(0, 40, 16):
        net.train_step(X[s : s + 16], y[s : s + 16], optimizer)
    net.fit(X, y, epochs=1, batch_size=16, optimizer=optimizer, shuffle=False)
    np.testing.assert_allclose(net.theta, by_hand.theta, rtol=1e-10, atol=1e-13)


@pytest.mark.parametrize("dtype_", ["float32", "float64"])
def test_training_is_the_same_on_both_backends(exact_cuda: Backend, dtype_: str) -> None:
    X, y = data()
    thetas = []
    for b in (cpu_backend(2), exact_cuda):
        net, adam = network(backend=b, dtype=dtype_), Adam(0.01, clip_norm=0.1, clip_value=0.02, max_norm=1.0, weight_decay=0.1)
        net.fit(X, y, epochs=2, batch_size=13, optimizer=adam)
        net.train_step(X, y, adam)
        thetas.append(b.to_numpy(net.theta).copy())
    assert np.array_equal(*thetas)


def test_limits_may_change_between_epochs() -> None:
    (X, y), fitted, stepped, sgd = data(), network(), network(), SGD(0.5)
    changes: list[dict[str, Any]] = [
        {"clip_norm": 0.1},
        {"clip_norm": 0.2},
        {"clip_norm": None, "max_norm": 0.5},
        {"max_norm": None},
    ]

    def change(p: Any) -> None:
        if p.epoch_ended and p.epoch < 4:
            vars(sgd).update(changes[p.epoch])

    fitted.fit(X, y, epochs=5, batch_size=20, optimizer=sgd, shuffle=False, callbacks=change)
    sgd = SGD(0.5)
    for epoch in range(5):
        for s in (0, 20):
            stepped.train_step(X[s : s + 20], y[s : s + 20], sgd)
        vars(sgd).update(changes[epoch] if epoch < 4 else {})
    assert np.array_equal(fitted.theta, stepped.theta)


def test_clipping_saves_a_training_that_would_diverge() -> None:
    X, y = data()
    net = network(loss="squared_error", dtype="float32")
    history = net.fit(100 * X, y, epochs=20, batch_size=8, optimizer=SGD(0.1, clip_norm=0.5))
    assert np.isfinite(history.loss).all()


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "zero": (lambda: SGD(0.1, clip_norm=0), "clip_norm is 0; expected a positive number, or None"),
    "negative": (lambda: Adam(max_norm=-1.0), "max_norm is -1"),
    "text": (lambda: SGD(0.1, clip_value="1"), "clip_value is '1'"),  # type: ignore[arg-type]
    "sums": (lambda: cpu_backend(1).squares(np.ones(300), np.ones(1)), "sums has 1 entries; expected 2"),
    "limits": (lambda: cpu_backend(1).clip(np.ones(3), np.ones(3), np.ones(1)), "limits has shape"),
    "limit": (lambda: cpu_backend(1).max_norm(np.ones((3, 3)), np.ones(2)), "limit has shape"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options(name: str) -> None:
    with pytest.raises(ValueError, match=BAD[name][1]) as error:
        BAD[name][0]()
    assert "\n" not in str(error.value)
