"""Dropout: masks that are a function of (seed, layer, step, element) on any backend, its gradient, and inference without it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import cpu_backend

import bpgpu
from bpgpu import MLP, SGD, Adam
from bpgpu.backend import Backend
from bpgpu.random import DROPOUT

Array = np.ndarray[Any, Any]


def expected_mask(seed: int, layer: int, step: int, shape: tuple[int, int], rate: float) -> Array:
    """Straight from NumPy's Philox: 32-bit halves of its words, low half first."""
    count = shape[0] * shape[1]
    key = np.array([seed, DROPOUT + layer * 2**40 + step], np.uint64)
    words = [int(w) for w in np.random.Philox(key=key).random_raw(count)]
    halves = [half for word in words for half in (word % 2**32, word // 2**32)][:count]
    return np.array([half >= rate * 2**32 for half in halves]).reshape(shape)


@pytest.mark.parametrize("shape", [(1, 1), (3, 5), (7, 33), (64, 65), (130, 70)])
def test_the_mask(shape: tuple[int, int], any_backend: Backend, dtype: np.dtype, rng: np.random.Generator) -> None:
    b = any_backend
    A = (rng.random(shape) + 0.5).astype(dtype)
    for seed, layer, first, rate in ((0, 0, 0, 0.5), (2**64 - 1, 3, 5, 0.2), (7, 1, 10**9, 0.9)):
        key = np.array([seed, first], np.uint64).view(np.int64)
        got = b.to_numpy(b.dropout(b.asarray(A), rate, b.asarray(key), layer))
        kept = expected_mask(seed, layer, first, shape, rate)
        assert got.dtype == dtype and np.array_equal(got, np.where(kept, A * dtype.type(1 / (1 - rate)), 0))


def test_each_step_of_a_program_has_its_own(any_backend: Backend) -> None:
    b = any_backend
    A, target, sums = b.asarray(np.ones((5, 9))), b.asarray(np.zeros((5, 9))), b.asarray(np.zeros(4))
    key = b.asarray(np.array([3, 10], np.int64))
    with b.capture() as program:
        b.dropout(A, 0.5, key, 2, target=target)
        b.total(target.reshape(45), sums)
    program.run(0, 4)
    assert b.to_numpy(sums).tolist() == [2 * expected_mask(3, 2, 10 + t, (5, 9), 0.5).sum() for t in range(4)]


def test_rates() -> None:
    b, key = cpu_backend(1), np.array([1, 0])
    for rate in (0.01, 0.3, 0.5, 0.99):
        kept = b.dropout(np.ones((1000, 100)), rate, key, 0) > 0
        assert abs(kept.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / 1e5)
        assert np.allclose(np.corrcoef(kept[:, :-1].ravel(), kept[:, 1:].ravel())[0, 1], 0, atol=0.02)


def data(n: int = 40) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, n)
    return 2 * np.eye(3, 6)[y] + rng.standard_normal((n, 6)), y


def network(**options: Any) -> MLP:
    return MLP([6, 19, 15, 3], **{"activation": ["tanh", "gelu"], "seed": 4, "dropout": [0.1, 0.5, 0.25], **options})


def test_the_gradient_is_that_of_the_thinned_network() -> None:
    """A step with dropout moves theta along the difference quotient of the loss with the masks held fixed."""
    net, (X, y) = network(dtype="float64"), data()
    masks = [expected_mask(4, l, 0, (40, u), r) / (1 - r) for l, (u, r) in enumerate(((6, 0.1), (19, 0.5), (15, 0.25)))]

    def loss(theta: Array) -> float:
        other = network(dtype="float64", dropout=0.0)
        other.theta = theta
        a = X * masks[0]
        for l, f in enumerate(("tanh", "gelu")):
            a = other.backend.dense_forward(a, other.weights[l], other.biases[l], f) * masks[l + 1]
        z = other.backend.dense_forward(a, other.weights[2], other.biases[2])
        return float(np.mean(np.logaddexp.reduce(z, axis=1) - z[np.arange(40), y]))

    theta, rng = net.theta.copy(), np.random.default_rng(1)
    assert net.train_step(X, y, SGD(1.0)) == pytest.approx(loss(theta), rel=1e-12)
    gradient = theta - net.theta
    for _ in range(5):
        direction = rng.standard_normal(theta.size)
        direction /= np.linalg.norm(direction)
        quotient = (loss(theta + 1e-5 * direction) - loss(theta - 1e-5 * direction)) / 2e-5
        assert gradient @ direction == pytest.approx(quotient, rel=1e-7, abs=1e-9)


@pytest.mark.parametrize("dtype_", ["float32", "float64"])
def test_training_is_the_same_on_both_backends(exact_cuda: Backend, dtype_: str) -> None:
    X, y = data()
    nets = [network(backend=b, dtype=dtype_) for b in (cpu_backend(2), exact_cuda)]
    losses = []
    for net in nets:
        optimizer = Adam(0.01)
        history = net.fit(X, y, epochs=2, batch_size=13, optimizer=optimizer)
        losses.append([*history.loss, net.train_step(X, y, optimizer)])
    assert np.array_equal(nets[0].theta, nets[1].backend.to_numpy(nets[1].theta)) and losses[0] == losses[1]


def test_fit_is_its_steps_and_steps_differ() -> None:
    fitted, stepped, (X, y) = network(), network(), data()
    fitted.fit(X, y, epochs=2, batch_size=11, optimizer=SGD(0.1), shuffle=False)
    sgd = SGD(0.1)
    for _ in range(2):
        for s in range(0, 40, 11):
            stepped.train_step(X[s : s + 11], y[s : s + 11], sgd)
    assert np.array_equal(fitted.theta, stepped.theta)
    still, losses = network(), set()
    zero = SGD(0.0)
    for _ in range(5):
        losses.add(still.train_step(X, y, zero))
    assert len(losses) == 5


def test_only_training_drops(tmp_path: Path) -> None:
    with_dropout, without, (X, y) = network(), network(dropout=0), data()
    assert np.array_equal(with_dropout.predict_proba(X), without.predict_proba(X))
    assert with_dropout.evaluate(X, y) == without.evaluate(X, y) and with_dropout.gradient(X, y)[0] == without.gradient(X, y)[0]
    with_dropout.save(tmp_path / "m")
    assert bpgpu.load(tmp_path / "m").dropout == (0.1, 0.5, 0.25)
    assert network(dropout=0.3).dropout == (0, 0.3, 0.3) and MLP([3, 2], dropout=0.5).dropout == (0,)


def test_it_resumes(tmp_path: Path) -> None:
    X, y = data()
    nets = [network() for _ in range(3)]
    nets[0].fit(X, y, epochs=4, batch_size=16, optimizer=Adam())
    nets[1].fit(X, y, epochs=2, batch_size=16, optimizer=Adam(), callbacks=bpgpu.Checkpoint(tmp_path / "c"))
    nets[2].fit(X, y, epochs=4, batch_size=16, optimizer=Adam(), resume=tmp_path / "c")
    assert np.array_equal(nets[0].theta, nets[2].theta)


def test_it_helps_against_overfitting() -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((10, 40))
    y, y_test = rng.integers(0, 10, 150), rng.integers(0, 10, 2000)
    X, X_test = (centres[labels] + 2.5 * rng.standard_normal((len(labels), 40)) for labels in (y, y_test))
    scores = []
    for dropout in (0.0, 0.5):
        net = MLP([40, 300, 300, 10], dropout=dropout, seed=1)
        net.fit(X, y, epochs=60, batch_size=32, optimizer=Adam(1e-3))
        scores.append(net.evaluate(X_test, y_test)[0])
    assert scores[1] < 0.8 * scores[0], scores


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "one": (lambda: network(dropout=1.0), "dropout is 1.0; expected less than 1"),
    "negative": (lambda: network(dropout=[0, -0.1, 0]), "dropout is -0.1"),
    "text": (lambda: network(dropout="half"), "dropout is 'half'"),
    "count": (lambda: network(dropout=[0.5, 0.5]), "2 rates of dropout; expected one number, or 3"),
    "rate": (lambda: cpu_backend(1).dropout(np.ones((2, 2)), 1.0, np.zeros(2, np.int64), 0), "rate is 1.0"),
    "key": (lambda: cpu_backend(1).dropout(np.ones((2, 2)), 0.5, np.zeros(2), 0), "int64 key"),
    "target": (lambda: cpu_backend(1).dropout(np.ones((2, 2)), 0.5, np.zeros(2, np.int64), 0, target=np.ones(4)), "target"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options(name: str) -> None:
    with pytest.raises(ValueError, match=BAD[name][1]) as error:
        BAD[name][0]()
    assert "\n" not in str(error.value)
