"""Health: what it says of a network is so, what is wrong is said once, and a healthy network is left in peace."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import bpgpu
from bpgpu import MLP, SGD
from bpgpu.cuda import CUDABackend
from bpgpu.health import EVERY, EXAMPLES

Array = np.ndarray[Any, Any]


def data(n: int = 300, inputs: int = 6) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, n)
    return 2 * np.eye(3, inputs)[y] + rng.standard_normal((n, inputs)), y


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_the_numbers_are_those_of_the_batch(backend: str) -> None:
    X, y = data()
    net = MLP([6, 40, 30, 3], activation=["relu", "tanh"], dtype="float64", backend=backend)
    net.weights[0][:, :7] = 0
    net.biases[0][:7] = -1  # seven dead units
    net.biases[1][:5] = 8  # five saturated ones
    before = net.theta.copy()
    history = net.fit(X, y, epochs=1, batch_size=50, optimizer=SGD(1e-9), shuffle=False)
    (health,) = history.health
    passes = net.forward(X[:128])
    back, gains = net.backward(passes, y[:128]), [passes.z(0) > 0, 1 - np.tanh(passes.z(1)) ** 2]
    assert health.epoch == 0
    np.testing.assert_allclose(health.delta, [np.linalg.norm(d) for d in back.delta], rtol=1e-12)
    np.testing.assert_allclose(health.gradient, [np.linalg.norm(dW) for dW in back.dW], rtol=1e-12)
    np.testing.assert_allclose(health.gain, [gain.mean() for gain in gains], rtol=1e-12)
    assert health.dead == [(~gains[0]).all(axis=0).mean(), 0] and health.dead[0] >= 7 / 40
    assert health.saturated == [(gain.mean(axis=0) < 0.01).mean() for gain in gains] and health.saturated[1] >= 5 / 30
    moved = [np.linalg.norm(W - V) / np.linalg.norm(V) for V, W in zip(net.views(before)[0], net.weights, strict=True)]
    np.testing.assert_allclose(health.update, moved, rtol=1e-12)


def test_it_looks_after_the_first_epoch_and_then_from_time_to_time() -> None:
    X, y = data()
    history = MLP([6, 8, 3]).fit(X, y, epochs=80, batch_size=50)
    assert [h.epoch for h in history.health] == list(range(0, 80, -(-EVERY * EXAMPLES // 300)))
    X, y = data(EVERY * EXAMPLES)
    assert [h.epoch for h in MLP([6, 8, 3]).fit(X, y, epochs=3).health] == [0, 1, 2]
    assert len(MLP([6, 8, 3]).fit(X[:2], y[:2], epochs=2).health) == 1


def test_looking_changes_nothing_and_a_healthy_network_gets_no_advice(capfd: pytest.CaptureFixture[str]) -> None:
    X, y = data()
    for activation in (*bpgpu.ACTIVATIONS, "leaky_relu"):
        net = MLP([6, 40, 30, 3], activation=activation)
        assert net.fit(X, y, epochs=5, batch_size=10).notes == {}, activation
    capfd.readouterr()
    deep = MLP([6, 20, 20, 20, 3], activation="leaky_relu")
    X = -abs(X)  # every unit of the first layer may be on its slope of 0.01, which is not saturated
    deep.weights[0] = abs(deep.weights[0])
    assert deep.fit(X, y, epochs=1, optimizer=SGD(0)).health[0].saturated[0] == 0
    assert "bpgpu: layer" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("dead", "layer 0: 100% of its units are dead (f' = 0 for every example); try leaky_relu"),
        ("saturated", "layer 1: 80% of its units have f' < 0.01; try relu"),
        ("vanishing", "of the output layer's: too little comes back through the layers above; try relu or fewer layers"),
    ],
)
def test_trouble_is_said_once_in_a_plain_sentence(kind: str, sentence: str, capfd: pytest.CaptureFixture[str]) -> None:
    X, y = data()
    if kind == "dead":
        net = MLP([6, 40, 3], activation="relu")
        net.biases[0] = np.full(40, -1000)
    elif kind == "saturated":
        net = MLP([6, 40, 30, 3], activation="tanh")
        net.biases[1][:24] = 5
    else:
        net = MLP([6, *[20] * 10, 3], activation="sigmoid")
    history = net.fit(X, y, epochs=60, batch_size=100, optimizer=SGD(1e-4))
    assert len(history.health) == 3 and list(history.notes) == [kind] and sentence in history.notes[kind]
    said = [line for line in capfd.readouterr().err.splitlines() if "layer" in line]
    assert said == [f"bpgpu: {history.notes[kind]}"]


def test_enormous_numbers_are_no_error() -> None:
    X, y = data()
    net = MLP([6, 40, 3], activation="identity", loss="squared_error")
    net.weights[0][:] = 1e20
    net.weights[1][:] = 1e-20
    (health,) = net.fit(X, y, epochs=1, optimizer=SGD(0)).health
    assert health.update == [0, 0] and not np.isnan(health.gradient).any()


def test_the_same_on_both_backends(exact_cuda: CUDABackend) -> None:
    X, y = data()
    first, second = (
        MLP([6, 9, 3], activation="tanh", backend=b).fit(X, np.eye(3)[y], epochs=1, batch_size=100).health
        for b in ("cpu", exact_cuda)
    )
    assert first == second and len(first) == 1
