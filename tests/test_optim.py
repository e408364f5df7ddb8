"""The optimizers: each against its textbook in float64, on every path that takes a step."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bpgpu
from bpgpu import MLP, SGD, Adagrad, Adam, AdamW, Optimizer, RMSprop
from bpgpu.training import AHEAD

Array = np.ndarray[Any, Any]
LAYERS = [6, 9, 5, 3]


def data(n: int = 45) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, n)
    return 2 * np.eye(3, 6)[y] + rng.standard_normal((n, 6)), y


def network(**options: Any) -> MLP:
    return MLP(LAYERS, **{"activation": "tanh", "dtype": "float64", "seed": 1, **options})


def rate_of(t: int) -> float:
    return 0.3 / (t + 2)


class Textbook:
    """Parameters in float64 under the update of a paper, written from the paper; penalties are for the weights alone."""

    def __init__(self, net: MLP) -> None:
        self.w = np.array(net.theta)
        self.is_weight = np.arange(self.w.size) < sum(W.size for W in net.weights)
        layer = [np.full(W.size, l) for l, W in enumerate(net.weights)] + [np.full(b.size, l) for l, b in enumerate(net.biases)]
        self.layer = np.concatenate(layer)
        self.t = 0
        self.m, self.v = np.zeros_like(self.w), np.zeros_like(self.w)

    def sgd(self, g: Array, lr: Any, mu: float = 0.0, nesterov: bool = False) -> None:
        self.v = mu * self.v + g
        self.w -= lr * (g + mu * self.v if nesterov else self.v)

    def sutskever(self, g: Array, lr: Any, mu: float) -> None:
        self.v = mu * self.v - lr * g
        self.w += self.v

    def adam(self, g: Array, lr: Any, b1: float = 0.9, b2: float = 0.999, eps: float = 1e-8, hat: bool = False) -> None:
        self.t += 1
        self.m = b1 * self.m + (1 - b1) * g
        self.v = b2 * self.v + (1 - b2) * g * g
        if hat:  # the end of section 2 of the paper
            self.w -= lr * np.sqrt(1 - b2**self.t) / (1 - b1**self.t) * self.m / (np.sqrt(self.v) + eps)
        else:
            self.w -= lr * (self.m / (1 - b1**self.t)) / (np.sqrt(self.v / (1 - b2**self.t)) + eps)

    def rmsprop(self, g: Array, lr: Any, beta: float) -> None:
        self.v = beta * self.v + (1 - beta) * g * g
        self.w -= lr * g / (np.sqrt(self.v) + 1e-8)

    def adagrad(self, g: Array, lr: Any) -> None:
        self.v += g * g
        self.w -= lr * g / (np.sqrt(self.v) + 1e-10)


Update = Callable[[Textbook, Array, int, float], None]  # gradient without penalties, t, examples of the batch
CASES: dict[str, tuple[Callable[[], Optimizer], Update]] = {
    "sgd": (lambda: SGD(0.1), lambda s, g, t, n: s.sgd(g, 0.1)),
    "momentum": (lambda: SGD(0.1, 0.9), lambda s, g, t, n: s.sgd(g, 0.1, 0.9)),
    "nesterov": (lambda: SGD(0.1, 0.8, nesterov=True), lambda s, g, t, n: s.sgd(g, 0.1, 0.8, nesterov=True)),
    "l2": (lambda: SGD(0.1, 0.9, weight_decay=0.02), lambda s, g, t, n: s.sgd(g + 0.02 * s.w * s.is_weight, 0.1, 0.9)),
    "l1": (lambda: SGD(0.1, l1=0.02), lambda s, g, t, n: s.sgd(g + 0.02 * np.sign(s.w) * s.is_weight, 0.1)),
    "shared": (
        lambda: SGD(0.1, weight_decay=2.0, l1=0.5, average_penalties=True),
        lambda s, g, t, n: s.sgd(g + (2 * s.w + 0.5 * np.sign(s.w)) * s.is_weight / n, 0.1),
    ),
    "schedule": (lambda: SGD(rate_of, 0.9), lambda s, g, t, n: s.sgd(g, rate_of(t), 0.9)),
    "rate in velocity": (
        lambda: SGD(rate_of, 0.9, rate_in_velocity=True), lambda s, g, t, n: s.sutskever(g, rate_of(t), 0.9)
    ),
    "layers": (
        lambda: SGD(0.1, 0.9, layer_rates=[1, 0, 0.5]),
        lambda s, g, t, n: s.sgd(g, 0.1 * np.array([1, 0, 0.5])[s.layer], 0.9),
    ),
    "adam": (lambda: Adam(0.01), lambda s, g, t, n: s.adam(g, 0.01)),
    "adam with other numbers": (
        lambda: Adam(0.02, 0.8, 0.95, 1e-3, weight_decay=0.1),
        lambda s, g, t, n: s.adam(g + 0.1 * s.w * s.is_weight, 0.02, 0.8, 0.95, 1e-3),
    ),
    "epsilon hat": (
        lambda: Adam(rate_of, epsilon=1e-3, epsilon_hat=True), lambda s, g, t, n: s.adam(g, rate_of(t), eps=1e-3, hat=True)
    ),
    "adamw": (
        lambda: AdamW(0.01, weight_decay=0.3),
        lambda s, g, t, n: (setattr(s, "w", s.w - 0.01 * 0.3 * s.w * s.is_weight), s.adam(g, 0.01))[1],
    ),
    "sgdw": (
        lambda: SGD(0.1, 0.9, weight_decay=0.3, decoupled=True, layer_rates=(1, 2, 3)),
        lambda s, g, t, n: (
            setattr(s, "w", s.w - 0.1 * np.array([1, 2, 3])[s.layer] * 0.3 * s.w * s.is_weight),
            s.sgd(g, 0.1 * np.array([1, 2, 3])[s.layer], 0.9),
        )[1],
    ),
    "rmsprop": (lambda: RMSprop(0.01, 0.9), lambda s, g, t, n: s.rmsprop(g, 0.01, 0.9)),
    "adagrad": (lambda: Adagrad(0.1), lambda s, g, t, n: s.adagrad(g, 0.1)),
}  # fmt: skip


def textbook(net: MLP, name: str, X: Array, y: Array, batches: list[slice]) -> Array:
    other, state = network(), Textbook(net)
    for t, batch in enumerate(batches):
        other.theta = state.w
        CASES[name][1](state, other.gradient(X[batch], y[batch])[1], t, batch.stop - batch.start)
    return state.w


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
@pytest.mark.parametrize("name", CASES)
def test_steps_are_the_papers(name: str, backend: str) -> None:
    """train_step by train_step, then two epochs of fit with a smaller last batch, which goes on with the same t."""
    net, optimizer, (X, y) = network(backend=backend), CASES[name][0](), data()
    batches = [slice(s, min(s + 7, 45)) for s in range(0, 45, 7)]
    expected = textbook(net, name, X, y, 3 * batches)
    for batch in batches:
        net.train_step(X[batch], y[batch], optimizer)
    net.fit(X, y, epochs=2, batch_size=7, optimizer=optimizer, shuffle=False)
    np.testing.assert_allclose(net.theta, expected, rtol=1e-10, atol=1e-12)
    assert net.trainer(optimizer).steps_taken == 21
    assert not np.allclose(net.theta, network().theta, atol=1e-3)


@pytest.mark.parametrize("name", CASES)
def test_fit_is_its_steps_to_the_bit(name: str) -> None:
    """More steps than train_step computes the numbers of at once, with batches of two sizes."""
    fitted, stepped, (X, y) = network(dtype="float32"), network(dtype="float32"), data()
    first, second = CASES[name][0](), CASES[name][0]()
    fitted.fit(X, y, epochs=14, batch_size=11, optimizer=first, shuffle=False)
    for _ in range(14):
        for s in range(0, 45, 11):
            stepped.train_step(X[s : s + 11], y[s : s + 11], second)
    assert stepped.trainer(second).steps_taken == 70 > AHEAD
    assert np.array_equal(fitted.theta, stepped.theta)


def test_attributes_may_change_between_steps() -> None:
    """Also where the numbers of coming steps have been computed."""
    (X, y), nets, changes = data(), [network(), network()], [0.1, 0.1, 0.2, 0.2, 0.05]
    ahead, anew = Adam(0.1), [Adam(rate) for rate in changes]
    for rate, other in zip(changes, anew, strict=True):
        ahead.learning_rate = rate
        nets[0].train_step(X, y, ahead)
        trainer, before = nets[1].trainer(other), nets[1].trainer(anew[max(0, anew.index(other) - 1)])
        trainer.adopt(other)
        trainer.steps_taken = before.steps_taken
        for name, state in before.states.items():
            trainer.states[name][:] = state
        nets[1].train_step(X, y, other)
        assert np.array_equal(nets[0].theta, nets[1].theta)


def test_a_function_is_asked_step_by_step() -> None:
    """It may go by what has happened meanwhile."""
    asked: list[int] = []

    def rate(t: int) -> float:
        asked.append(t)
        return 0.1

    net, (X, y), optimizer = network(), data(), Adam(rate)
    for t in range(3):
        net.train_step(X, y, optimizer)
        assert asked == list(range(t + 1))


def test_attributes_may_change_between_epochs() -> None:
    """Numbers, the rule, and from a number to a schedule and back."""
    fitted, stepped, (X, y) = network(), network(), data()
    changes: list[dict[str, Any]] = [
        {"learning_rate": 0.01}, {"momentum": 0.9}, {"learning_rate": rate_of}, {"nesterov": True}, {"learning_rate": 0.02},
        {"momentum": 0.0, "nesterov": False}, {"weight_decay": 0.1},
    ]  # fmt: skip
    optimizer = SGD(0.1)

    def change(p: bpgpu.Progress) -> None:
        if p.epoch_ended and p.epoch < len(changes):
            vars(optimizer).update(changes[p.epoch])

    fitted.fit(X, y, epochs=len(changes) + 1, batch_size=9, optimizer=optimizer, shuffle=False, callbacks=change)
    optimizer = SGD(0.1)
    for epoch in range(len(changes) + 1):
        for s in range(0, 45, 9):
            stepped.train_step(X[s : s + 9], y[s : s + 9], optimizer)
        if epoch < len(changes):
            vars(optimizer).update(changes[epoch])
    assert np.array_equal(fitted.theta, stepped.theta)


def test_weights_of_examples_share_the_penalties() -> None:
    """average_penalties divides by the sum of the weights, here 2 n: the same as half the penalty."""
    (X, y), nets = data(), [network(), network()]
    halved = SGD(0.1, weight_decay=1.0, average_penalties=True)
    nets[0].fit(X, y, epochs=2, batch_size=7, optimizer=halved, sample_weight=np.full(45, 2.0))
    nets[1].fit(X, y, epochs=2, batch_size=7, optimizer=SGD(0.1, weight_decay=0.5, average_penalties=True))
    np.testing.assert_allclose(nets[0].theta, nets[1].theta, rtol=1e-12)


def test_a_batch_whose_weights_are_all_0_has_no_penalty(dtype: np.dtype) -> None:
    """It takes a step of nothing, and adds nothing to the penalty that is measured."""

    class Measures(bpgpu.Callback):
        measures_penalty = True

    (X, y), nets = data(), [network(dtype=dtype), network(dtype=dtype)]
    weight, shared = np.array([0.0] * 20 + [1.0] * 25), {"weight_decay": 2.0, "l1": 0.5, "average_penalties": True}
    options: dict[str, Any] = {"epochs": 2, "batch_size": 20, "shuffle": False, "callbacks": Measures()}
    whole = nets[0].fit(X, y, optimizer=SGD(0.1, **shared), sample_weight=weight, **options)
    part = nets[1].fit(X[20:], y[20:], optimizer=SGD(0.1, **shared), **options)
    np.testing.assert_allclose(nets[0].theta, nets[1].theta, rtol=1e-5)
    np.testing.assert_allclose(np.multiply(whole.penalty, 45), np.multiply(part.penalty, 25), rtol=1e-5)


@pytest.mark.parametrize("make", [Adam, AdamW, RMSprop, Adagrad, lambda: SGD(0.05, 0.9)])
def test_each_learns(make: Callable[[], Optimizer]) -> None:
    X, y = data(300)
    net = network(dtype="float32")
    history = net.fit(X, y, epochs=40, batch_size=16, optimizer=make(), validation_data=(X, y))
    assert history.loss[-1] < 0.6 * history.loss[0] and history.validation_accuracy[-1] > 0.85


def test_a_step_of_numbers_that_stay_costs_no_operation() -> None:
    """Without numbers that vary there is nothing to gather but the batch."""
    net, (X, y) = network(), data()
    calls: list[str] = []
    original = type(net.backend)._launch

    def launch(self: Any, name: str, *rest: Any) -> None:
        if self.recorder is not None:
            calls.append(name)
        original(self, name, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(net.backend), "_launch", launch)
        for optimizer, gathers in ((SGD(0.1), 2), (SGD(0.1, 0.9, weight_decay=0.1, l1=1e-3), 2), (RMSprop(), 2), (Adam(), 3)):
            calls.clear()
            net.fit(X, y, epochs=1, batch_size=45, optimizer=optimizer)
            assert calls.count("gather") == gathers, optimizer


def test_factors_of_layers_may_be_an_array() -> None:
    thetas = []
    for factors in ([1, 0.5, 2], np.array([1, 0.5, 2])):
        net, optimizer = network(), SGD(0.1, layer_rates=factors)
        net.fit(*data(), epochs=1, optimizer=optimizer)
        optimizer.layer_rates = factors[::-1]
        net.train_step(*data(), optimizer)
        thetas.append(net.theta)
    assert np.array_equal(*thetas)


@pytest.mark.parametrize("factors", [[1, 0.5, 2], np.array([1, 0.5, 2])], ids=["list", "array"])
def test_factors_of_layers_change_by_assignment_alone(factors: Any, tmp_path: Path) -> None:
    """Not in place, which no step would notice: also not those that come back from a checkpoint."""
    (X, y), net, path = data(), network(), tmp_path / "c"
    optimizer, resumed = (SGD(0.1, layer_rates=factors) for _ in range(2))
    net.fit(X, y, epochs=1, optimizer=optimizer, callbacks=bpgpu.Checkpoint(path))
    network().fit(X, y, epochs=2, optimizer=resumed, resume=path)
    for its in (optimizer, resumed):
        with pytest.raises(TypeError, match="does not support item assignment"):
            its.layer_rates[0] = 0  # type: ignore[index]
        assert its.layer_rates == (1, 0.5, 2)
    before = net.theta.copy()
    net.train_step(X, y, optimizer)
    assert not np.array_equal(net.theta, before)
    before = net.theta.copy()
    optimizer.layer_rates = [0, 0, 0]
    net.train_step(X, y, optimizer)
    assert np.array_equal(net.theta, before)


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "beta1": (lambda: Adam(beta1=1.0), "beta1 is 1.0; expected less than 1"),
    "beta2": (lambda: Adam(beta2=-0.1), "beta2 is -0.1; expected a finite number"),
    "beta": (lambda: RMSprop(beta=1), "beta is 1; expected less than 1"),
    "epsilon": (lambda: Adagrad(epsilon=0), "epsilon is 0; expected a positive number"),
    "epsilon of float32": (lambda: Adam(epsilon=1e-50).hyper("float32", 1), "which is 0 in float32"),
    "l1": (lambda: SGD(0.1, l1=float("inf")), "l1 is inf"),
    "true": (lambda: SGD(True), "learning_rate is True"),
    "text": (lambda: Adam("fast"), "learning_rate is 'fast'"),
    "layer_rates": (lambda: SGD(0.1, layer_rates=0.5), "layer_rates is 0.5; expected a list"),
    "negative factor": (lambda: SGD(0.1, layer_rates=[1, -1]), r"layer_rates\[1\] is -1"),
    "factors": (lambda: network().fit(*data(), optimizer=SGD(0.1, layer_rates=[1])), "has 1 factors; expected 3"),
    "schedule": (lambda: network().fit(*data(), optimizer=SGD(lambda t: -1.0)), r"learning_rate\(0\) is -1.0"),
    "schedule of nothing": (lambda: network().fit(*data(), optimizer=Adam(lambda t: None)), r"learning_rate\(0\) is None"),  # type: ignore[arg-type,return-value]
    "large": (lambda: SGD(1e39).hyper("float32", 1), "learning_rate is 1e\\+39, too large for float32"),
    "large decay": (lambda: SGD(0.1, weight_decay=1e39).hyper("float32", 1), "weight_decay is 1e\\+39, too large"),
    "not one": (lambda: network().fit(*data(), optimizer=Adam), "expected for example bpgpu.SGD"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_numbers(name: str) -> None:
    with pytest.raises((ValueError, TypeError), match=BAD[name][1]) as error:
        BAD[name][0]()
    assert "\n" not in str(error.value)


def test_a_refused_fit_changes_nothing() -> None:
    net, optimizer = network(), Adam(layer_rates=[1])
    before = net.theta.copy()
    with pytest.raises(ValueError, match="layer_rates"):
        net.fit(*data(), optimizer=optimizer)
    with pytest.raises(ValueError, match="layer_rates"):
        net.train_step(*data(), optimizer)
    assert np.array_equal(net.theta, before) and net.trainer(optimizer).steps_taken == 0
