"""Weights by class, soft labels, and initial weights."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import bpgpu
from bpgpu import MLP, SGD
from bpgpu.initializers import NAMES
from bpgpu.random import WEIGHTS, _log, normal, words

Array = np.ndarray[Any, Any]


def data(n: int = 40) -> tuple[Array, Array]:
    rng = np.random.default_rng(0)
    y = rng.choice(3, n, p=[0.6, 0.3, 0.1])
    return 2 * np.eye(3, 6)[y] + rng.standard_normal((n, 6)), y


def network(**options: Any) -> MLP:
    return MLP([6, 9, options.pop("outputs", 3)], **{"activation": "tanh", "seed": 1, "dtype": "float64", **options})


def trained(y: Any, net: MLP | None = None, **options: Any) -> Array:
    net = net or network()
    net.fit(data()[0], y, epochs=2, batch_size=16, optimizer=SGD(0.1), **options)
    return np.array(net.theta)


def test_class_weights_are_weights_of_examples() -> None:
    _, y = data()
    counts = np.bincount(y)
    cases: list[tuple[Any, Array]] = [
        ({0: 0.5, 2: 3}, np.array([0.5, 1, 3])[y]), ([1, 2, 4], np.array([1, 2, 4])[y]), ("balanced", (40 / (3 * counts))[y]),
    ]  # fmt: skip
    for given, weight in cases:
        assert np.array_equal(trained(y, class_weight=given), trained(y, sample_weight=weight))
        assert np.array_equal(trained(np.eye(3)[y], class_weight=given), trained(np.eye(3)[y], sample_weight=weight))
        both = trained(y, class_weight=given, sample_weight=np.arange(40) % 3)
        assert np.array_equal(both, trained(y, sample_weight=weight * (np.arange(40) % 3)))


def test_class_weights_of_two_classes() -> None:
    y = (data()[1] > 0).astype(int)
    nets = [network(outputs=1, loss="binary_cross_entropy") for _ in range(2)]
    assert np.array_equal(trained(y, nets[0], class_weight={1: 5}), trained(y, nets[1], sample_weight=1 + 4 * y))


def test_label_smoothing() -> None:
    _, y = data()
    soft = 0.9 * np.eye(3)[y] + 0.1 / 3
    np.testing.assert_allclose(trained(y, label_smoothing=0.1), trained(soft), rtol=1e-12)
    np.testing.assert_allclose(trained(np.eye(3)[y], label_smoothing=0.1), trained(soft), rtol=1e-12)
    nets = [network(outputs=1, loss="binary_cross_entropy") for _ in range(2)]
    np.testing.assert_allclose(trained(y > 0, nets[0], label_smoothing=0.2), trained(0.8 * (y > 0) + 0.1, nets[1]), rtol=1e-12)


def test_smoothing_is_not_for_validation() -> None:
    X, y = data()
    net = network()
    history = net.fit(X, y, epochs=1, label_smoothing=0.3, validation_data=(X, y))
    assert history.validation_loss[0] == net.evaluate(X, y)[0]


# -- initial weights ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES[1:])
def test_variances(name: str) -> None:
    i, o = 300, 500
    W = MLP([i, o, 2], initializer=name, dtype="float64", seed=3).weights[0]
    if name == "orthogonal":
        np.testing.assert_allclose(W @ W.T, np.eye(i), atol=1e-12)
        tall = MLP([o, i, 2], initializer=name, dtype="float64").weights[0]
        np.testing.assert_allclose(tall.T @ tall, np.eye(i), atol=1e-12)
        return
    family, kind = name.split("_")
    variance = {"glorot": 2 / (i + o), "he": 2 / i, "lecun": 1 / i}[family]
    assert abs(W.mean()) < 5 * math.sqrt(variance / W.size) and W.var() == pytest.approx(variance, rel=0.02)
    fourth = (W**4).mean() / W.var() ** 2
    assert fourth == pytest.approx(1.8 if kind == "uniform" else 3, rel=0.03)
    if kind == "uniform":
        assert abs(W).max() <= math.sqrt(3 * variance)


def test_auto_goes_by_the_activation() -> None:
    def weights(activation: str, initializer: str) -> Array:
        return np.array(MLP([7, 8, 3], activation=activation, initializer=initializer, seed=2).weights[0])

    for activation in bpgpu.ACTIVATIONS:
        relus = ("relu", "leaky_relu", "elu", "gelu", "silu")
        name = "he_uniform" if activation in relus else "lecun_uniform" if activation == "selu" else "glorot_uniform"
        assert np.array_equal(weights(activation, "auto"), weights(activation, name))


def test_normal_numbers() -> None:
    numbers = normal(5, 0, (100_001,), 2.0, np.float64)
    assert abs(numbers.mean()) < 0.03 and numbers.std() == pytest.approx(2, rel=0.01)
    share = np.mean(abs(numbers) < 2)
    assert share == pytest.approx(0.6827, abs=0.006) and abs(np.corrcoef(numbers[:-1:2], numbers[1::2])[0, 1]) < 0.02
    assert np.array_equal(normal(5, 0, (3,), 2.0, np.float64), normal(5, 0, (1, 3), 2.0, np.float64)[0])
    x = np.concatenate([np.random.default_rng(0).random(1000), [1.0, 0.75, 0.5, 1e-300, 1e-17]])
    np.testing.assert_allclose(_log(x), np.log(x), rtol=4e-16, atol=1e-18)


def test_the_same_bits_on_any_machine() -> None:
    """Figures from one machine; they involve additions, products, quotients and roots only."""
    digests = [
        hashlib.sha256(np.ascontiguousarray(MLP([50, 40, 3], initializer=name, seed=9, dtype="float64").theta)).hexdigest()[:16]
        for name in ("he_uniform", "glorot_normal")
    ]
    assert digests == ["8e1c4c0ab429a72a", "3e0f836aa559faae"]


def test_a_function_of_ones_own() -> None:
    def mine(shape: tuple[int, int], generator: np.random.Generator) -> Array:
        return generator.standard_normal(shape) * 0.1

    nets = [MLP([6, 9, 3], initializer=mine, seed=seed) for seed in (1, 1, 2)]
    assert np.array_equal(nets[0].theta, nets[1].theta) and not np.array_equal(nets[0].theta, nets[2].theta)
    assert nets[0].weights[0].std() == pytest.approx(0.1, rel=0.3) and not nets[0].biases[0].any()


def test_a_function_of_ones_own_has_the_words_of_its_layer() -> None:
    seen: list[Array] = []

    def mine(shape: tuple[int, int], generator: np.random.Generator) -> Array:
        seen.append(generator.bit_generator.random_raw(5))  # type: ignore[attr-defined]
        return np.ones(shape)

    MLP([6, 9, 3], initializer=mine, seed=2**64 - 1)
    np.testing.assert_array_equal(seen, [words(2**64 - 1, WEIGHTS + layer, 5) for layer in range(2)])


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "name": (lambda: network(initializer="he_unifrom"), "did you mean 'he_uniform'"),
    "shape": (lambda: network(initializer=lambda shape, g: np.ones(3)), r"shape \(3,\) for layer 0; expected finite \(6, 9\)"),
    "label": (lambda: trained(data()[1], class_weight={3: 1.0}), "a weight for 3; expected labels in 0..2"),
    "negative": (lambda: trained(data()[1], class_weight={1: -1.0}), r"class_weight\[1\] is -1"),
    "count": (
        lambda: trained(data()[1], class_weight=[1, 2]),
        "class_weight has shape \\(2,\\); expected one weight for each of 3",
    ),
    "word": (lambda: trained(data()[1], class_weight="balance"), "did you mean 'balanced'"),
    "regression": (lambda: trained(data()[1], network(loss="huber"), class_weight="balanced"), "needs one label"),
    "smoothing": (lambda: trained(data()[1], label_smoothing=1.0), "label_smoothing is 1.0; expected less than 1"),
    "smoothing of numbers": (lambda: trained(data()[1], network(loss="huber"), label_smoothing=0.1), "not for huber"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options(name: str) -> None:
    with pytest.raises(ValueError, match=BAD[name][1]) as error:
        BAD[name][0]()
    assert "\n" not in str(error.value)
