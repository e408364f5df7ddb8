"""Health: what it says of a network is so, what is wrong is said once, and a healthy network is left in peace."""

from __future__ import annotations

import pickle
import time
from typing import Any

import numpy as np
import pytest

import bpgpu
from bpgpu import MLP, SGD
from bpgpu.cuda import CUDABackend
from bpgpu.health import Observer

Array = np.ndarray[Any, Any]


def data(n: int = 300, inputs: int = 6) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, n)
    return 2 * np.eye(3, inputs)[y] + rng.standard_normal((n, inputs)), y


@pytest.mark.usefixtures("every_epoch_looked_at")
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


def looks(net: MLP, n: int, *fits: int) -> list[int]:
    """After how many epochs in all it was looked at, in calls of fit of so many epochs."""
    (X, y), done, found = data(n, net.layers[0]), 0, []
    for epochs in fits:
        found += [done + h.epoch + 1 for h in net.fit(X, y, epochs=epochs, batch_size=50).health]
        done += epochs
    return found


def test_it_looks_from_time_to_time_and_at_short_trainings_not_at_all() -> None:
    assert looks(MLP([6, 300, 3]), 300, 1) == looks(MLP([784, 100, 3]), 300, 5) == []
    first, *more = looks(MLP([6, 8, 3]), 300, 420)
    assert 30 < first < 200 and {b - a for a, b in zip([first, *more], more, strict=False)} <= {first - 1, first} and more
    assert looks(MLP([784, 300, 3]), 16_000, 2) == [1, 2]  # of many examples, and a network of some size: every epoch


def test_many_short_trainings_are_looked_at_as_a_long_one_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bpgpu.health.SHARE", 1.3)
    expected = looks(MLP([6, 8, 3]), 300, 60)
    assert 5 < len(expected) < 20
    for parts in ([1] * 60, [2, 38, 20]):
        assert looks(MLP([6, 8, 3]), 300, *parts) == expected
    first, second = MLP([6, 8, 3]), pickle.loads(pickle.dumps(MLP([6, 8, 3])))
    assert looks(first, 300, 31) + [31 + e for e in looks(pickle.loads(pickle.dumps(first)), 300, 29)] == expected
    assert looks(second, 300, 60) == expected


@pytest.mark.parametrize(
    ("layers", "n", "epochs"), [([784, 128, 3], 2000, 30), ([784, 64, 3], 300, 90), ([6, 40, 30, 3], 300, 360)]
)
def test_it_takes_a_few_percent_of_the_time(layers: list[int], n: int, epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three on an idle machine; it is three times as much that is not let pass."""
    (X, y), right, spent = data(n, layers[0]), Observer.look, [0.0]

    def timed(*arguments: Any) -> None:
        begun = time.perf_counter()
        right(*arguments)
        spent[0] += time.perf_counter() - begun

    monkeypatch.setattr(Observer, "look", timed)
    shares = []
    for _ in range(4):  # the first one compiles
        spent[0], begun = 0.0, time.perf_counter()
        history = MLP(layers).fit(X, y, epochs=epochs, optimizer=SGD(1e-3))
        shares.append(spent[0] / (time.perf_counter() - begun))
    assert history.health and min(shares) < 0.09


@pytest.mark.usefixtures("every_epoch_looked_at")
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


@pytest.mark.usefixtures("every_epoch_looked_at")
@pytest.mark.parametrize(
    ("kind", "sentence"),
    [
        ("dead", "layer 0: 100% of its units are dead (f' = 0 for all 128 examples looked at); try leaky_relu"),
        ("saturated", "layer 1: 80% of its units have f' < 0.01; try relu"),
        ("outputs", "layer 1, the outputs: 100% of its units have f' < 0.01, though they are 92 from y on average; scale y"),
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
    elif kind == "outputs":
        net = MLP([6, 40, 1], loss="squared_error", output_activation="sigmoid")
        net.biases[1] = [10.0]
        y = 92 + y
    else:
        net = MLP([6, *[20] * 10, 3], activation="sigmoid")
    history = net.fit(X, y, epochs=4, batch_size=100, optimizer=SGD(1e-4))
    assert len(history.health) == 4 and list(history.notes) == [kind] and sentence in history.notes[kind]
    said = [line for line in capfd.readouterr().err.splitlines() if "layer" in line]
    assert said == [f"bpgpu: {history.notes[kind]}"]


@pytest.mark.usefixtures("every_epoch_looked_at")
def test_outputs_may_be_saturated_where_they_are_right(capfd: pytest.CaptureFixture[str]) -> None:
    X, _ = data()
    for options in ({"loss": "squared_error", "output_activation": "sigmoid"}, {"loss": "binary_cross_entropy"}):
        net = MLP([6, 40, 2], **options)
        net.biases[1] = [20.0, -20.0]
        history = net.fit(X, np.tile([1.0, 0.0], (300, 1)), epochs=1, optimizer=SGD(1e-4))
        assert history.health[0].saturated[1] == 1 and history.notes == {}
    assert "bpgpu: layer" not in capfd.readouterr().err


@pytest.mark.usefixtures("every_epoch_looked_at")
@pytest.mark.parametrize("again", ["fit", "partial_fit"])
def test_it_is_said_once_in_a_loop_of_trainings(again: str, capfd: pytest.CaptureFixture[str]) -> None:
    X, y = data()
    if again == "fit":
        net = MLP([6, 40, 3], activation="sigmoid")
        notes = [net.fit(1000 * X, y, epochs=1, optimizer=SGD(1e-9)).notes for _ in range(4)]
        assert len(notes[0]) == 1 and notes == [notes[0]] * 4  # every history has it
    else:
        pytest.importorskip("sklearn")
        estimator = bpgpu.MLPClassifier((40,), activation="logistic", learning_rate_init=1e-9, random_state=0)
        for _ in range(4):
            estimator.partial_fit(1000 * X, y, classes=[0, 1, 2])
    said = [line for line in capfd.readouterr().err.splitlines() if "layer" in line]
    assert len(said) == 1 and "have f' < 0.01" in said[0]


@pytest.mark.usefixtures("every_epoch_looked_at")
def test_enormous_numbers_are_no_error() -> None:
    X, y = data()
    net = MLP([6, 40, 3], activation="identity", loss="squared_error")
    net.weights[0][:] = 1e20
    net.weights[1][:] = 1e-20
    (health,) = net.fit(X, y, epochs=1, optimizer=SGD(0)).health
    assert health.update == [0, 0] and not np.isnan(health.gradient).any()


@pytest.mark.usefixtures("every_epoch_looked_at")
def test_the_same_on_both_backends(exact_cuda: CUDABackend) -> None:
    X, y = data()
    first, second = (
        MLP([6, 9, 3], activation="tanh", backend=b).fit(X, np.eye(3)[y], epochs=1, batch_size=100).health
        for b in ("cpu", exact_cuda)
    )
    assert first == second and len(first) == 1
