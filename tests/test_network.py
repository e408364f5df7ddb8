"""The network as its user sees it: the API of bpgpu.MLP, what it takes, what it refuses, its files, and what it survives."""

from __future__ import annotations

import gc
import hashlib
import itertools
import json
import multiprocessing
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import time
import tracemalloc
import weakref
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bpgpu
from bpgpu import MLP, SGD, Adam, epochs, fitting

Array = np.ndarray[Any, Any]
BACKENDS = ["cpu", "numpy"]


def blobs(n: int = 60, inputs: int = 6, classes: int = 3, dtype: Any = "f4", seed: int = 0) -> tuple[Array, Array]:
    """Classes around centres of their own: easy to learn."""
    rng = np.random.default_rng(seed)
    y = rng.integers(0, classes, n)
    return (3 * np.eye(classes, inputs)[y] + rng.standard_normal((n, inputs))).astype(dtype), y


def small(**options: Any) -> MLP:
    return MLP([6, 9, 5, 3], **{"activation": "tanh", "seed": 1, **options})


def digest(*arrays: Any) -> str:
    return hashlib.sha256(b"".join(np.ascontiguousarray(a).tobytes() for a in arrays)).hexdigest()


def one_sentence(error: pytest.ExceptionInfo[BaseException]) -> str:
    message = str(error.value)
    assert message and "\n" not in message and len(message) < 400, message
    return message


# -- theta ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_theta_is_flat_and_weights_are_views(backend: str, dtype: str) -> None:
    net = small(backend=backend, dtype=dtype)
    assert net.theta.shape == (6 * 9 + 9 * 5 + 5 * 3 + 9 + 5 + 3,) and net.theta.dtype == dtype and net.theta.flags.c_contiguous
    assert [w.shape for w in net.weights] == [(6, 9), (9, 5), (5, 3)] and [b.shape for b in net.biases] == [(9,), (5,), (3,)]
    net.theta[:] = np.arange(net.theta.size)
    flat = np.concatenate([*(w.ravel() for w in net.weights), *net.biases])
    assert np.array_equal(flat, np.arange(net.theta.size)), "weights layer by layer, then biases"
    before = net.predict_proba(np.ones((1, 6)))
    net.weights[2][4, 1], net.biases[0][3] = -7, -8
    assert net.theta[54 + 45 + 4 * 3 + 1] == -7 and net.theta[54 + 45 + 15 + 3] == -8
    net.theta[:] = 0
    assert not net.weights[1].any() and not np.array_equal(net.predict_proba(np.ones((1, 6))), before)


def test_assigning_parameters_cannot_tear_them_apart() -> None:
    """net.theta -= step works; net.theta = array and net.weights[0] = array are followed by the rest, or refused."""
    net, X = small(), blobs()[0]
    net.theta -= 0.5 * net.theta
    assert np.array_equal(net.weights[0], 0.5 * small().weights[0])
    new = np.linspace(-1, 1, net.theta.size, dtype="f4")
    try:
        net.theta = new
    except AttributeError:
        pass
    else:
        assert np.array_equal(net.theta, new) and np.array_equal(net.weights[0].ravel(), new[:54])
    try:
        net.weights[0] = np.zeros((6, 9), "f4")
        net.biases[2] = np.ones(3, "f4")
    except (TypeError, AttributeError):
        pass
    else:
        assert not net.theta[:54].any() and (net.theta[-3:] == 1).all()
    net.train_step(X, blobs()[1], SGD(0.1))
    assert np.array_equal(net.theta, np.concatenate([*(w.ravel() for w in net.weights), *net.biases]))


def test_initial_weights(dtype: np.dtype) -> None:
    net = MLP([400, 300, 200, 10], activation=["relu", "tanh"], dtype=dtype, seed=3)
    for l, variance in enumerate((2 / 400, 2 / 500, 2 / 210)):  # He, Glorot, Glorot
        assert np.var(net.weights[l].astype("f8")) == pytest.approx(variance, rel=0.1)
        assert abs(net.weights[l].mean()) < 4 * np.sqrt(variance / net.weights[l].size) and not net.biases[l].any()
        assert len(np.unique(net.weights[l])) > 0.9 * net.weights[l].size


def test_seeds() -> None:
    assert digest(small(seed=5).theta) == digest(small(seed=5).theta) != digest(small(seed=6).theta)
    assert digest(small(seed=5).theta) == digest(small(seed=5, backend="numpy").theta)
    nets = {seed: small(seed=seed) for seed in (0, 1, 2**63, 2**64 - 1)}
    assert len({digest(net.theta) for net in nets.values()}) == 4
    assert not np.array_equal(small().weights[0][:5, :5], small().weights[1][:5, :5])
    X, y = blobs()
    trained = []
    for seed in (5, 5, 6):
        net = small(seed=seed)
        net.theta[:] = 0.1  # from here on the seed is that of the shuffles
        net.fit(X, y, epochs=2, batch_size=16)
        trained.append(digest(net.theta))
    assert trained[0] == trained[1] != trained[2]


def test_initial_bits_are_the_same_on_every_machine() -> None:
    """Written down once, with Philox's stream and no library function between it and the weights."""
    words = np.random.Philox(key=np.array([7, 0], np.uint64)).random_raw(4)
    limit = np.sqrt(6 / (2 + 2))
    expected = [((2 * ((int(w) >> 11) / 2**53) - 1) * limit) for w in words]
    assert MLP([2, 2, 2], activation="tanh", seed=7, dtype="float64").weights[0].ravel().tolist() == expected


# -- passes ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_passes(backend: str) -> None:
    net, (X, y) = small(backend=backend, activation=["gelu", "relu"]), blobs()
    passes = net.forward(X)
    assert [a.shape for a in passes.a] == [(60, 6), (60, 9), (60, 5), (60, 3)] and np.array_equal(passes.a[0], X)
    assert np.array_equal(passes.a[-1], net.predict_proba(X)) and np.array_equal(passes.z(-1), passes.z(2))
    for l in range(3):
        np.testing.assert_allclose(passes.z(l), passes.a[l] @ net.weights[l] + net.biases[l], rtol=1e-5, atol=1e-5)
    for wrong in (3, -4):
        with pytest.raises(IndexError):
            passes.z(wrong)
    back = net.backward(passes, y)
    assert [d.shape for d in back.delta] == [(60, 9), (60, 5), (60, 3)] and back.gradient.shape == net.theta.shape
    loss, gradient = net.gradient(X, y)
    assert loss == back.loss and isinstance(loss, float) and np.array_equal(gradient, back.gradient)
    assert net.evaluate(X, y)[0] == pytest.approx(loss, rel=1e-6)


def test_gradient_and_predictions_change_nothing() -> None:
    net, (X, y) = small(), blobs()
    before, X_before = digest(net.theta), X.copy()
    net.gradient(X, y)
    net.predict(X), net.predict_proba(X), net.evaluate(X, y)
    net.train_step(X, y, SGD(0.0))
    assert digest(net.theta) == before and np.array_equal(X, X_before)
    net.fit(X, y, epochs=1)
    assert np.array_equal(X, X_before)


@pytest.mark.parametrize("activation", bpgpu.ACTIVATIONS)
def test_one_activation_for_each_hidden_layer(activation: str) -> None:
    X, y = blobs()
    mixed, plain = small(activation=[activation, "relu"]), small(activation=activation)
    assert mixed.activations == (activation, "relu") and plain.activations == (activation, activation)
    mixed.theta[:] = plain.theta
    assert np.array_equal(mixed.forward(X).a[1], plain.forward(X).a[1])
    history = mixed.fit(X, y, epochs=15, batch_size=16)
    assert history.loss[-1] < 0.6 * history.loss[0] and mixed.evaluate(X, y)[1] > 0.8


def test_predictions_do_not_depend_on_blocks() -> None:
    net, (X, _) = small(), blobs(2500)
    whole = net.predict_proba(X)
    assert np.array_equal(whole, np.concatenate([net.predict_proba(X[s : s + 77]) for s in range(0, 2500, 77)]))
    assert np.array_equal(net.predict(X), whole.argmax(1)) and net.predict(X).shape == (2500,)
    assert np.array_equal(net.outputs(X), whole)


@pytest.mark.parametrize("backend", BACKENDS)
def test_accuracy_is_that_of_predict(backend: str) -> None:
    """Also where outputs are so near each other that rounding makes them equal."""
    net = MLP([1, 2], backend=backend)
    net.theta[:] = [0, 0, 0, 1e-9]
    X = np.zeros((4, 1))
    for y in (np.zeros(4, int), np.ones(4, int)):
        assert net.evaluate(X, y)[1] == np.mean(net.predict(X) == y)
    net = MLP([1, 1], loss="binary_cross_entropy", backend=backend)
    net.theta[:] = [0, 1e-9]
    for y in (np.zeros(4), np.ones(4)):
        assert net.evaluate(X, y)[1] == np.mean(net.predict(X) == y)


# -- losses and targets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_labels_and_rows_of_probabilities(backend: str) -> None:
    net, (X, y) = small(backend=backend), blobs()
    loss, gradient = net.gradient(X, y)
    for same in (y.tolist(), y.astype("u1"), y.astype("f4"), y[:, None], np.eye(3)[y], np.eye(3, dtype=bool)[y]):
        loss_too, gradient_too = net.gradient(X, same)
        np.testing.assert_allclose(gradient_too, gradient, rtol=1e-5, atol=1e-8)
        assert loss_too == pytest.approx(loss, rel=1e-6)
    soft = np.full((60, 3), 1 / 3)
    assert net.gradient(X, soft)[0] == pytest.approx(-np.mean(np.log(net.predict_proba(X))), rel=1e-5)
    assert net.evaluate(X, np.eye(3)[y])[1] == net.evaluate(X, y)[1] == np.mean(net.predict(X) == y)


@pytest.mark.parametrize("backend", BACKENDS)
def test_several_labels_an_example(backend: str) -> None:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((300, 4))
    y = np.stack([X[:, 0] > 0, X[:, 1] > X[:, 2], X.sum(1) > 0], 1)
    net = MLP([4, 16, 3], loss="binary_cross_entropy", activation="tanh", backend=backend)
    net.fit(X, y, epochs=40, batch_size=30, optimizer=SGD(0.2, momentum=0.9))
    p = net.predict_proba(X)
    assert p.shape == (300, 3) and (p >= 0).all() and (p <= 1).all()
    assert set(np.unique(net.predict(X))) == {0, 1} and net.predict(X).shape == (300, 3)
    assert net.evaluate(X, y)[1] == pytest.approx(np.mean(net.predict(X) == y)) and net.evaluate(X, y)[1] > 0.93


def test_one_binary_output() -> None:
    X, y = blobs(classes=2)
    net = MLP([6, 8, 1], loss="binary_cross_entropy")
    history = net.fit(X, y, epochs=20, batch_size=10, validation_data=(X, y))
    assert net.predict(X).shape == (60,) and net.predict_proba(X).shape == (60, 1) and net.output_activation == "sigmoid"
    assert history.validation_accuracy[-1] == np.mean(net.predict(X) == y) > 0.9


@pytest.mark.parametrize("loss", ["squared_error", "absolute_error", "huber"])
def test_regression(loss: str) -> None:
    rng = np.random.default_rng(0)
    X = rng.uniform(-1, 1, (400, 2))
    y = X[:, 0] * X[:, 1] + 0.5
    net = MLP([2, 24, 1], activation="tanh", loss=loss, seed=2)
    history = net.fit(X, y, epochs=60, batch_size=20, optimizer=SGD(0.02, momentum=0.9), validation_data=(X, y))
    assert net.predict(X).shape == (400,) and np.abs(net.predict(X) - y).mean() < 0.05
    assert history.validation_accuracy == [] and net.evaluate(X, y)[1] is None
    d = net.predict(X).astype("f8") - y
    C = {"squared_error": d * d / 2, "absolute_error": abs(d), "huber": np.where(abs(d) > 1, abs(d) - 0.5, d * d / 2)}[loss]
    assert net.evaluate(X, y)[0] == pytest.approx(C.mean(), rel=1e-4)
    assert MLP([2, 5, 3], loss=loss).predict(X).shape == (400, 3)


def test_the_quadratic_cost_of_the_textbook() -> None:
    """Sigmoids all the way, squared error, targets that are rows of 0 and one 1, given as labels or as rows."""
    X, y = blobs()
    net = small(activation="sigmoid", loss="squared_error", output_activation="sigmoid", dtype="float64")
    assert net.gradient(X, y)[0] == net.gradient(X, np.eye(3)[y])[0]
    net.fit(X, y, epochs=60, batch_size=5, optimizer=SGD(2.0))
    assert np.mean(net.outputs(X).argmax(1) == y) > 0.8


# -- weights of examples --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_whole_weights_are_repetitions(backend: str, dtype: np.dtype) -> None:
    (X, y), tolerance = blobs(dtype=dtype), 100 * float(np.finfo(dtype).eps)
    times = np.random.default_rng(0).integers(0, 4, 60)
    for reduction in ("sum", "mean"):
        net = small(reduction=reduction, backend=backend, dtype=dtype)
        loss, gradient = net.gradient(X, y, sample_weight=times)
        loss_too, gradient_too = net.gradient(np.repeat(X, times, 0), np.repeat(y, times))
        assert loss == pytest.approx(loss_too, rel=tolerance)
        np.testing.assert_allclose(gradient, gradient_too, rtol=0, atol=tolerance * abs(gradient).max())
        assert net.evaluate(X, y, sample_weight=times)[0] == pytest.approx(loss, rel=tolerance)


@pytest.mark.parametrize("reduction", ["sum", "mean"])
def test_zero_weights_ignore_examples(reduction: str, dtype: np.dtype) -> None:
    net, (X, y) = small(reduction=reduction, dtype=dtype), blobs(dtype=dtype)
    weight = np.ones(60)
    weight[32:] = 0
    strange = X.copy()
    strange[32:] = 1e4
    loss, gradient = net.gradient(strange, y, sample_weight=weight)
    loss_too, gradient_too = net.gradient(X[:32], y[:32])
    assert loss == loss_too and np.array_equal(gradient, gradient_too), "1 / 32 is exact, adding 0 as well"


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_mean_does_not_depend_on_the_unit_of_the_weights(scale: float) -> None:
    net, (X, y) = small(), blobs()
    weight = np.random.default_rng(0).uniform(0.1, 1, 60)
    loss, gradient = net.gradient(X, y, sample_weight=weight)
    loss_too, gradient_too = net.gradient(X, y, sample_weight=weight * scale)
    assert loss_too == pytest.approx(loss, rel=1e-5)
    np.testing.assert_allclose(gradient_too, gradient, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_enormous_weights(dtype: str) -> None:
    """Whose sum is no number of the dtype any more."""
    net, (X, y) = small(dtype=dtype), blobs()
    loss, gradient = net.gradient(X, y, sample_weight=np.full(60, np.finfo(dtype).max))
    assert loss == pytest.approx(net.gradient(X, y)[0], rel=1e-5) and np.isfinite(gradient).all()


def test_fit_with_weights_is_its_steps() -> None:
    X, y = blobs()
    weight = np.random.default_rng(1).integers(0, 3, 60).astype(float)
    weight[14:21] = 0  # a batch that has no weight at all
    fitted, stepped = small(), small()
    fitted.fit(X, y, epochs=1, batch_size=7, optimizer=SGD(0.1, momentum=0.5), sample_weight=weight, shuffle=False)
    sgd = SGD(0.1, momentum=0.5)
    for s in range(0, 60, 7):
        if s == 14:  # train_step refuses such a batch; all that moves is the velocity
            velocity = stepped.trainer(sgd).states["velocity"]
            velocity *= np.float32(0.5)
            stepped.theta -= np.float32(0.1) * velocity
        else:
            stepped.train_step(X[s : s + 7], y[s : s + 7], sgd, sample_weight=weight[s : s + 7])
    np.testing.assert_allclose(fitted.theta, stepped.theta, rtol=1e-5, atol=1e-7)


# -- what the arrays may be -----------------------------------------------------------------------------------------------


def forms(X: Array, folder: Path) -> dict[str, Any]:
    readonly, big = X.copy(), np.zeros((2 * len(X), 3 * X.shape[1]), X.dtype)
    readonly.flags.writeable = False
    big[::2, ::3] = X
    on_disk = np.memmap(folder / "X", X.dtype, "w+", shape=X.shape)
    on_disk[:] = X
    on_disk.flush()
    raw = np.frombuffer(b"\0" + X.tobytes(), X.dtype, offset=1).reshape(X.shape)
    return {
        "float64": X.astype("f8"), "list": X.tolist(), "Fortran": np.asfortranarray(X), "strided": big[::2, ::3],
        "reversed": X[::-1].copy()[::-1], "read-only": readonly, "byte order": X.astype(">f4"), "unaligned": raw,
        "memmap": np.memmap(folder / "X", X.dtype, "r", shape=X.shape), "float16": X.astype("f2"),
        "integers": (100 * X).astype("i2"),
    }  # fmt: skip


FORMS = [
    "float64", "list", "Fortran", "strided", "reversed", "read-only", "byte order", "unaligned", "memmap", "float16",
    "integers",
]  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_arrays_of_any_form(form: str, tmp_path: Path) -> None:
    X, y = blobs()
    given = forms(X, tmp_path)[form]
    X = np.ascontiguousarray(np.asarray(given), "f4")
    plain, other = small(), small()
    for net, inputs in ((plain, X), (other, given)):
        net.train_step(inputs, y, SGD(0.1))
        net.fit(inputs, y, epochs=2, batch_size=16, validation_data=(inputs, y))
    assert digest(other.theta) == digest(plain.theta)
    assert digest(other.predict_proba(given), *other.forward(given).a) == digest(plain.predict_proba(X), *plain.forward(X).a)
    assert other.evaluate(given, y) == plain.evaluate(X, y)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_frames(library: str) -> None:
    frames = pytest.importorskip(library)
    X, y = blobs()
    frame = frames.DataFrame({f"x{c}": X[:, c] for c in range(6)})
    labels, weight = frames.Series(y), frames.Series(np.linspace(0, 1, 60))
    plain, framed = small(), small()
    plain.fit(X, y, epochs=2, sample_weight=np.linspace(0, 1, 60))
    framed.fit(frame, labels, epochs=2, sample_weight=weight)
    assert digest(plain.theta) == digest(framed.theta)
    assert np.array_equal(framed.predict(frame), plain.predict(X)) and framed.evaluate(frame, labels) == plain.evaluate(X, y)
    column = frames.DataFrame({"y": y})
    assert framed.evaluate(frame, column) == plain.evaluate(X, y)


# -- training -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("batch_size", [1, 7, 16, 59, 60, 61, 1000])
def test_fit_is_its_steps(batch_size: int, backend: str) -> None:
    """fit without shuffling is train_step on one slice after the other, bit for bit, and so is its loss."""
    (X, y), sgd = blobs(), SGD(0.1, momentum=0.9, weight_decay=1e-3)
    fitted, stepped = small(backend=backend), small(backend=backend)
    history = fitted.fit(
        X, y, epochs=2, batch_size=batch_size, optimizer=SGD(0.1, momentum=0.9, weight_decay=1e-3), shuffle=False
    )
    means = []
    for _ in range(2):
        losses = [
            (stepped.train_step(X[s : s + batch_size], y[s : s + batch_size], sgd), len(X[s : s + batch_size]))
            for s in range(0, 60, batch_size)
        ]
        means.append(sum(loss * n for loss, n in losses) / 60)
    assert digest(fitted.theta) == digest(stepped.theta)
    assert history.loss == pytest.approx(means, rel=1e-12) and len(history.seconds) == 2 and fitted.epochs_trained == 2


def test_shuffling_uses_every_example_once() -> None:
    """One example a step, linear, sum of errors: after an epoch every example has left its mark, whatever the order."""
    net = MLP([50, 1], loss="absolute_error", reduction="sum", dtype="float64", seed=9)
    net.theta[:] = 0
    net.fit(np.eye(50), np.full(50, 1e6), epochs=3, batch_size=4, optimizer=SGD(1.0))
    assert net.weights[0].ravel().tolist() == [3.0] * 50 and net.biases[0] == 150


def test_every_epoch_has_an_order_of_its_own() -> None:
    """With x = 1 and the learning rate 1/2 for w and b, a step makes the output that of its one example."""
    net, X, y = MLP([1, 1], loss="squared_error", dtype="float64"), np.ones((50, 1)), np.arange(50.0)
    ends: list[float] = []

    def callback(p: bpgpu.Progress) -> None:
        if p.epoch_ended:
            ends.append(float(net.predict(X[:1])[0]))

    for _ in range(4):
        net.fit(X, y, epochs=3, batch_size=1, optimizer=SGD(0.5), callbacks=callback)
    assert len(set(ends)) > 6 and set(ends) <= set(y), "the last examples of twelve epochs"
    net.fit(X, y, epochs=1, batch_size=1, optimizer=SGD(0.5), shuffle=False)
    assert net.predict(X[:1])[0] == 49


@pytest.mark.parametrize("epochs", [(1, 3), (2, 2), (3, 1)])
def test_two_halves_are_the_whole(epochs: tuple[int, int]) -> None:
    X, y = blobs()
    whole, halves = small(), small()
    history = whole.fit(X, y, epochs=4, batch_size=16, optimizer=SGD(0.1, momentum=0.9))
    sgd = SGD(0.1, momentum=0.9)
    parts = [halves.fit(X, y, epochs=e, batch_size=16, optimizer=sgd) for e in epochs]
    assert digest(whole.theta) == digest(halves.theta) and history.loss == parts[0].loss + parts[1].loss


def placed(X: Array, where: str) -> Array:
    """The same numbers, somewhere else in memory."""
    if where == "odd address":
        raw = np.zeros(X.nbytes + 1, np.uint8)
        found = raw[1:].view(X.dtype).reshape(X.shape)
    elif where == "one number further":
        found = np.zeros(X.size + 1, X.dtype)[1:].reshape(X.shape)
    elif where == "columns":
        found = np.zeros((len(X), 11), X.dtype)[:, 3:9]
    elif where == "backwards":
        found = np.zeros(X.shape, X.dtype)[::-1]
    elif where == "Fortran":
        found = np.zeros(X.shape, X.dtype, order="F")
    else:
        found = np.zeros(X.shape, X.dtype.newbyteorder())
    found[...] = X
    found.flags.writeable = False
    return found


@pytest.mark.parametrize("options", [{}, {"dropout": [0.3, 0, 0]}], ids=["plain", "dropout"])
@pytest.mark.parametrize("where", ["odd address", "one number further", "columns", "backwards", "Fortran", "other bytes"])
def test_wherever_a_batch_lies(where: str, options: dict[str, Any]) -> None:
    """A step and a prediction read the caller's batch where it is, if they can: not a bit may depend on that."""
    X, y = blobs(400)  # what is much smaller is copied
    one, other = small(**options), small(**options)
    one.train_step(X, y, SGD(0.1))
    other.train_step(X, y, SGD(0.1))
    for clip in (None, 0.5):
        sgd, twin = SGD(0.1, momentum=0.9), SGD(0.1, momentum=0.9)
        for s in range(3):
            batch = placed(X + s, where)
            other.theta[:] = one.theta
            copied = np.array(batch, "f4")
            assert digest(one.outputs(batch)) == digest(other.outputs(copied))
            losses = [n.train_step(b, y, o, clip_per_example=clip) for n, b, o in ((one, batch, sgd), (other, copied, twin))]
            assert losses[0] == losses[1] and digest(one.theta) == digest(other.theta)
            del batch, copied  # a later step must not look for them


def test_a_batch_that_is_the_weights() -> None:
    """The step moves them while it reads the batch."""
    one, other = MLP([64, 300, 3], seed=1), MLP([64, 300, 3], seed=1)
    y = np.arange(256) % 3
    for _ in range(3):
        own = one.theta[: 256 * 64].reshape(256, 64)
        assert other.train_step(own.copy(), y, SGD(0.1)) == one.train_step(own, y, SGD(0.1))
        assert digest(one.theta) == digest(other.theta)


def test_a_batch_that_is_the_velocity() -> None:
    y, ends = np.arange(64) % 3, []
    for copies in (False, True):
        net, sgd = MLP([64, 300, 3], seed=1), SGD(0.1, momentum=0.9)
        net.train_step(np.random.default_rng(0).random((64, 64)), y, sgd)
        own = net.trainer(sgd).states["velocity"][: 64 * 64].reshape(64, 64)
        net.train_step(own.copy() if copies else own, y, sgd)
        ends.append(digest(net.theta))
    assert ends[0] == ends[1]


def test_two_python_threads_take_steps_of_one_network() -> None:
    """Every step is on the batch of the thread that asked for it."""
    net, sgd, y = MLP([200, 10, 3], seed=1), SGD(0.0), np.arange(100) % 3
    batches = np.random.default_rng(0).standard_normal((4, 100, 200)).astype("f4")
    expected = [net.train_step(X, y, sgd) for X in batches]

    def steps(i: int) -> bool:
        return all(net.train_step(batches[i].copy(), y, sgd) == expected[i] for _ in range(300))

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(steps, range(4)))


def test_optimizers_keep_their_velocities_apart() -> None:
    X, y = blobs()
    first, second = SGD(0.1, momentum=0.9), SGD(0.1, momentum=0.9)
    net, other = small(), small(seed=2)
    net.train_step(X, y, first)
    after_one = net.theta.copy()
    other.train_step(X, y, first)  # another network under the same optimizer
    net.train_step(X, y, first)
    moved = net.theta - after_one
    net.theta[:] = after_one
    net.train_step(X, y, second)  # from rest
    rest = net.theta - after_one
    assert abs(moved - rest).max() > 1e-4
    again = small()
    again.train_step(X, y, SGD(0.1))  # without momentum the first step is the same
    assert np.allclose(again.theta, after_one)


def test_changing_the_optimizer_between_steps_counts() -> None:
    X, y = blobs()
    net, fresh, sgd = small(), small(), SGD(0.1)
    net.train_step(X, y, sgd)
    sgd.learning_rate, sgd.weight_decay = 0.02, 0.1
    fresh.theta[:] = net.theta
    net.train_step(X, y, sgd)
    fresh.train_step(X, y, SGD(0.02, weight_decay=0.1))
    assert digest(net.theta) == digest(fresh.theta)
    sgd.momentum = 0.9  # another rule
    before = net.theta.copy()
    net.train_step(X, y, sgd)
    net.train_step(X, y, sgd)
    by_hand = MLP(net.layers, activation="tanh")
    by_hand.theta[:] = before
    twin = SGD(0.02, momentum=0.9, weight_decay=0.1)
    by_hand.train_step(X, y, twin)
    by_hand.train_step(X, y, twin)
    assert digest(net.theta) == digest(by_hand.theta)
    sgd.learning_rate = -1
    before = digest(net.theta)
    with pytest.raises(ValueError, match="learning_rate is -1"):
        net.train_step(X, y, sgd)
    assert digest(net.theta) == before


@pytest.mark.parametrize("name", ["learning_rate", "weight_decay"])
def test_a_number_too_large_for_the_dtype(name: str) -> None:
    net, (X, y), sgd = small(), blobs(), SGD(**{"learning_rate": 0.1, name: 1e300})
    before = digest(net.theta)
    for call in (lambda: net.train_step(X, y, sgd), lambda: net.fit(X, y, epochs=1, optimizer=sgd)):
        with pytest.raises(ValueError, match=f"{name} is 1e\\+300") as error:
            call()
        one_sentence(error)
    assert digest(net.theta) == before
    small(dtype="float64").train_step(X, y, SGD(1e-3))


def test_optimizers_are_let_go() -> None:
    """A velocity is as large as the network: it must not outlive its optimizer, say after every fit of a search."""
    net, (X, y) = small(), blobs()
    kept = []
    for _ in range(3):
        sgd = SGD(0.1, momentum=0.9)
        net.fit(X, y, epochs=1, optimizer=sgd)
        net.train_step(X, y, sgd)
        kept.append(weakref.ref(sgd))
    net.fit(X, y, epochs=1)
    del sgd
    gc.collect()
    assert [r() for r in kept] == [None] * 3


def test_networks_are_let_go() -> None:
    net, (X, y), sgd = small(), blobs(), SGD(0.1, momentum=0.9)
    net.fit(X, y, epochs=1, optimizer=sgd)
    gone = weakref.ref(net)
    del net
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_losses_of_the_history(reduction: str) -> None:
    net, (X, y) = small(reduction=reduction), blobs()
    history = net.fit(X, y, epochs=2, batch_size=7, optimizer=SGD(0.0), validation_data=(X, y))
    assert history.loss == pytest.approx([net.gradient(X, y)[0]] * 2, rel=1e-5) == history.validation_loss
    assert history.validation_accuracy == [net.evaluate(X, y)[1]] * 2 and len(history.seconds) == 2
    assert history.best_epoch == 0, "the first of equals"


def test_validation_data_may_have_weights() -> None:
    net, (X, y) = small(), blobs()
    weight = np.random.default_rng(1).random(60)
    history = net.fit(X, y, epochs=2, optimizer=SGD(0.0), validation_data=(X, y, weight))
    loss, accuracy = net.evaluate(X, y, sample_weight=weight)
    assert history.validation_loss == [loss] * 2 and history.validation_accuracy == [accuracy] * 2
    assert loss != net.evaluate(X, y)[0]


def test_progress() -> None:
    net, (X, y) = small(), blobs()
    seen: list[bpgpu.Progress] = []
    history = net.fit(X, y, epochs=3, batch_size=7, validation_data=(X, y), callbacks=seen.append)
    assert [p.epoch for p in seen if p.epoch_ended] == [0, 1, 2] and all(p.history is history for p in seen)
    for earlier, later in itertools.pairwise(seen):
        assert (earlier.epoch, earlier.examples) < (later.epoch, later.examples)
    assert all(p.epochs == 3 and p.examples_in_all == 180 and 0 < p.examples <= 60 and np.isfinite(p.loss) for p in seen)
    assert [p.loss for p in seen if p.epoch_ended] == history.loss and all(p.examples == 60 for p in seen if p.epoch_ended)


def test_callback_stops() -> None:
    X, y = blobs()
    net, short = small(), small()
    history = net.fit(X, y, epochs=50, batch_size=16, callbacks=lambda p: p.epoch_ended and p.epoch == 1)
    short.fit(X, y, epochs=2, batch_size=16)
    assert len(history.loss) == 2 == net.epochs_trained and digest(net.theta) == digest(short.theta)
    stopped = net.fit(X, y, epochs=5, batch_size=1, callbacks=lambda p: True)
    assert stopped.loss == [] and stopped.best_epoch is None and net.epochs_trained == 2
    assert len(net.fit(X, y, epochs=2, callbacks=lambda p: 1 if p.epoch_ended else None).loss) == 2, "only True ends it"


def overfitting() -> tuple[MLP, tuple[Array, Array], tuple[Array, Array]]:
    """Training that gets worse on the validation data."""
    rng = np.random.default_rng(3)
    return (
        small(seed=4),
        (rng.standard_normal((40, 6)), rng.integers(0, 3, 40)),
        (rng.standard_normal((200, 6)), rng.integers(0, 3, 200)),
    )


@pytest.mark.parametrize("how", ["to the end", "callback", "KeyboardInterrupt", "error"])
def test_restore_best(how: str) -> None:
    net, train, validation = overfitting()
    thetas: list[Array] = []

    def callback(p: bpgpu.Progress) -> bool:
        if p.epoch_ended:
            thetas.append(net.theta.copy())
            if p.epoch == 8 and how != "to the end":
                if how == "callback":
                    return True
                raise KeyboardInterrupt if how == "KeyboardInterrupt" else RuntimeError("stop")
        return False

    options: dict[str, Any] = {"epochs": 12, "batch_size": 8, "validation_data": validation, "restore_best": True}
    options |= {"optimizer": SGD(0.3, momentum=0.9), "callbacks": callback}
    if how in ("to the end", "callback"):
        history = net.fit(*train, **options)
        best = int(np.argmax(history.validation_accuracy))
        assert history.best_epoch == best and best < len(thetas) - 1
    else:
        with pytest.raises(KeyboardInterrupt if how == "KeyboardInterrupt" else RuntimeError):
            net.fit(*train, **options)
        other, _, _ = overfitting()
        scores = []
        for theta in thetas:
            other.theta[:] = theta
            scores.append(other.evaluate(*validation)[1])
        best = int(np.argmax(scores))
    assert digest(net.theta) == digest(thetas[best]), "the weights of the best epoch"


def test_without_restore_best_the_last_weights_stay() -> None:
    net, train, validation = overfitting()
    last: list[Array] = []
    net.fit(*train, epochs=5, batch_size=8, validation_data=validation, callbacks=lambda p: last.append(net.theta.copy()))
    assert digest(net.theta) == digest(last[-1])


@pytest.mark.parametrize("moment", ["within an epoch", "at the end of one"])
def test_keyboard_interrupt_leaves_a_usable_network(moment: str) -> None:
    net, (X, y), sgd = small(), blobs(), SGD(0.1, momentum=0.9)

    def callback(p: bpgpu.Progress) -> None:
        if p.epoch == 1 and p.epoch_ended == (moment != "within an epoch"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        net.fit(X, y, epochs=5, batch_size=1, optimizer=sgd, callbacks=callback)
    assert np.isfinite(net.theta).all() and net.epochs_trained in (1, 2)
    before = digest(net.theta)
    net.evaluate(X, y)
    assert digest(net.theta) == before
    sgd.learning_rate = 0.01
    losses = net.fit(X, y, epochs=5, batch_size=16, optimizer=sgd).loss
    assert losses[-1] < losses[0]


# -- divergence -----------------------------------------------------------------------------------------------------------


def hopeless(loss: str = "squared_error") -> tuple[MLP, Array, Array]:
    X, y = blobs()
    return MLP([6, 9, 3], activation="relu", loss=loss, seed=1), 10 * X, y


@pytest.mark.parametrize("batch_size", [7, 30, 60])
@pytest.mark.parametrize("epochs", [1, 2, 30])
@pytest.mark.parametrize("optimizer", [(1e30, 0.0), (1e38, 0.0), (1e30, 0.9)])
def test_divergence_leaves_finite_weights(batch_size: int, epochs: int, optimizer: tuple[float, float]) -> None:
    """Also if the last step of an epoch does it: its loss was finite, and the next epoch starts from weights of no use."""
    net, X, y = hopeless()
    before = net.theta.copy()
    try:
        net.fit(X, y, epochs=epochs, batch_size=batch_size, optimizer=SGD(optimizer[0], momentum=optimizer[1]))
    except bpgpu.Diverged as error:
        assert "learning rate" in str(error) and f"{optimizer[0]:g}" in str(error) and "\n" not in str(error)
        assert np.isfinite(net.evaluate(X, y)[0]), "these are not the weights of the last good epoch"
        assert epochs > 1 or np.array_equal(net.theta, before)
    else:
        assert epochs == 1 and batch_size == 60, "a second step would have seen it"
    assert np.isfinite(net.theta).all()


@pytest.mark.parametrize(("rate", "where"), [(1e10, "though every layer is finite"), (1e22, "outputs"), (3e38, "weights")])
def test_divergence_says_the_step_and_the_layer(rate: float, where: str) -> None:
    """Found by hand, step by step, the same."""
    (net, X, y), (by_hand, _, _), sgd = hopeless(), hopeless(), SGD(rate, momentum=0.9)
    with pytest.raises(bpgpu.Diverged) as error:
        net.fit(X, y, epochs=1, batch_size=4, optimizer=SGD(rate, momentum=0.9), shuffle=False)
    for s in range(0, 60, 4):
        if not np.isfinite(by_hand.gradient(X[s : s + 4], y[s : s + 4])[0]):
            break
        by_hand.train_step(X[s : s + 4], y[s : s + 4], sgd)
    assert f"in step {s // 4 + 1} of epoch 1" in one_sentence(error) and where in str(error.value)
    if where != "though every layer is finite":
        a = by_hand.forward(X[s : s + 4]).a
        bad = [not np.isfinite(by_hand.weights[l] if where == "weights" else a[l + 1]).all() for l in (0, 1)]
        assert f"first in the {where} of layer {bad.index(True)} of 0 to 1" in str(error.value)


def test_in_a_long_epoch_weights_of_not_long_ago_are_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """A step in sixty has an example that is too large: the weights are those of the last tenth step."""
    monkeypatch.setattr(epochs, "SLICE_SECONDS", 0)  # one step at a time
    monkeypatch.setattr(fitting, "REMEMBERED", 10)
    for optimizer in (SGD, Adam):
        (net, X, y), (by_hand, _, _), its = hopeless(), hopeless(), optimizer(1e-5)
        X[57] = 1e38
        with pytest.raises(bpgpu.Diverged, match="in step 58 of epoch 1"):
            net.fit(X, y, epochs=1, batch_size=1, optimizer=optimizer(1e-5), shuffle=False)
        for i in range(50):
            by_hand.train_step(X[i : i + 1], y[i : i + 1], its)
        assert np.array_equal(net.theta, by_hand.theta)


def test_after_divergence_a_smaller_rate_helps() -> None:
    """As the message advises: the velocity must not carry infinities on."""
    net, X, y = hopeless()
    sgd = SGD(1e15, momentum=0.9)
    with pytest.raises(bpgpu.Diverged):
        net.fit(X, y, epochs=5, batch_size=7, optimizer=sgd)
    sgd.learning_rate = 1e-4  # at which a new network and a new optimizer train well, too
    history = net.fit(X, y, epochs=5, batch_size=7, optimizer=sgd)
    assert history.loss[-1] < history.loss[0]


def test_divergence_with_restore_best() -> None:
    net, X, y = hopeless()
    sgd, good = SGD(1e-5), []

    def faster(p: bpgpu.Progress) -> None:
        if p.epoch_ended:
            good.append(net.theta.copy())
            net.theta[:] = net.theta * 1e30

    with pytest.raises(bpgpu.Diverged):
        net.fit(X, y, epochs=5, batch_size=7, optimizer=sgd, restore_best=True, callbacks=faster)
    assert digest(net.theta) == digest(good[0])


# -- threads and processes ------------------------------------------------------------------------------------------------


def training_job(seed: int) -> str:
    net, (X, y) = small(seed=seed), blobs(200, seed=seed)
    sgd = SGD(0.05, momentum=0.9)
    for n in range(1, 12):  # a new recording every time
        net.train_step(X[:n], y[:n], sgd)
        net.gradient(X[n:], y[n:])
    net.fit(X, y, epochs=3, batch_size=16, optimizer=sgd, validation_data=(X, y))
    return digest(net.theta, net.predict_proba(X))


def test_two_python_threads_at_the_same_time() -> None:
    alone = [training_job(seed) for seed in range(4)]
    for _ in range(2):
        results: dict[int, str] = {}
        start = threading.Barrier(4)

        def work(seed: int, start: threading.Barrier = start, results: dict[int, str] = results) -> None:
            start.wait()
            results[seed] = training_job(seed)

        threads = [threading.Thread(target=work, args=(seed,), daemon=True) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert [results.get(seed) for seed in range(4)] == alone


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_recording_is_its_own_threads_affair(backend: str) -> None:
    """While one thread records, another one computes, and records: nothing gets into the wrong program."""
    b = bpgpu.get_backend(backend)
    Z, recorded, problems = np.full((2, 3), 5.0), np.zeros((2, 3)), []

    def other() -> None:
        try:
            assert np.array_equal(b.activate(Z, "identity"), Z), "not computed"
            mine = np.zeros((2, 3))
            with b.capture() as program:
                b.activate(Z, "identity", A=mine)
            assert not mine.any()
            program.run()
            assert np.array_equal(mine, Z)
        except Exception as error:
            problems.append(error)

    with b.capture() as program:
        b.activate(Z, "relu", A=recorded)
        thread = threading.Thread(target=other, daemon=True)
        thread.start()
        thread.join(30)
    assert problems == [] and not recorded.any()
    program.run()
    assert np.array_equal(recorded, Z)


def _in_child(connection: Any, net: MLP, X: Array, y: Array) -> None:
    net.train_step(X, y, SGD(0.1))
    connection.send(digest(net.theta))


@pytest.mark.skipif("fork" not in multiprocessing.get_all_start_methods(), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_use_after_fork() -> None:
    net, (X, y) = small(), blobs()
    net.train_step(X, y, SGD(0.05))  # the team of threads is there
    context = multiprocessing.get_context("fork")
    answers = []
    for _ in range(2):
        ours, theirs = context.Pipe()
        child = context.Process(target=_in_child, args=(theirs, net, X, y), daemon=True)
        child.start()
        assert ours.poll(30), "the child hangs"
        answers.append(ours.recv())
        child.join(30)
        assert child.exitcode == 0
    net.train_step(X, y, SGD(0.1))  # and the parent's threads are as they were
    assert answers == [digest(net.theta)] * 2


def test_networks_can_be_copied_by_file_between_spawned_processes(tmp_path: Path) -> None:
    """Another process, nothing shared but the file, gives the same bits."""
    net, X = small(), blobs()[0]
    net.save(tmp_path / "m")
    np.save(tmp_path / "X.npy", X)
    code = (
        "import sys, hashlib, numpy as np, bpgpu; net = bpgpu.load(sys.argv[1] + '/m'); X = np.load(sys.argv[1] + '/X.npy'); "
        "print(hashlib.sha256(net.predict_proba(X).tobytes()).hexdigest())"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.strip() == digest(net.predict_proba(X))


# -- memory ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
def test_no_allocation_per_step(weighted: bool) -> None:
    n, inputs = 128, 784
    net = MLP([inputs, 64, 64, 10])
    X, y = blobs(n, inputs, 10)
    sgd, weight = SGD(0.01, momentum=0.9), np.linspace(0, 1, n, dtype="f4") if weighted else None
    for _ in range(3):
        net.train_step(X, y, sgd, sample_weight=weight)
    tracemalloc.start()
    try:
        for _ in range(200):  # Python's free lists are full then, such as that of dictionaries
            net.train_step(X, y, sgd, sample_weight=weight)
        gc.collect()
        before, _ = tracemalloc.get_traced_memory()
        tracemalloc.reset_peak()
        for _ in range(200):
            net.train_step(X, y, sgd, sample_weight=weight)
        _, peak = tracemalloc.get_traced_memory()
        gc.collect()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert after - before < 200 * 40, "less than the smallest object a step: what Python keeps in free lists"
    assert peak - before < n * 64 * 4 / 2, f"{peak - before} bytes at a time, and an array of a hidden layer has {n * 64 * 4}"


def test_fit_needs_no_memory_per_epoch() -> None:
    net, (X, y) = MLP([6, 400, 3]), blobs()
    seen: list[int] = []

    def callback(p: bpgpu.Progress) -> None:
        if p.epoch_ended:
            gc.collect()
            seen.append(tracemalloc.get_traced_memory()[0])

    tracemalloc.start()
    try:
        net.fit(X, y, epochs=13, batch_size=10, callbacks=callback)
    finally:
        tracemalloc.stop()
    assert seen[-1] - seen[2] < net.theta.nbytes, "ten epochs leave less than one copy of theta"


# -- bad input ------------------------------------------------------------------------------------------------------------


def broken(X: Array, place: tuple[int, int], value: Any) -> Array:
    X = X.copy()
    X[place] = value
    return X


GOOD_X, GOOD_Y = blobs()
BAD_X: dict[str, tuple[Any, type[Exception], str]] = {
    "columns": (GOOD_X[:, :5], ValueError, r"5 columns.*expected 6"),
    "one row flat": (GOOD_X[0], ValueError, r"\(6,\).*reshape\(1, -1\)"),
    "images": (GOOD_X.reshape(60, 2, 3), ValueError, r"\(60, 2, 3\)"),
    "number": (3.0, ValueError, r"shape \(\)"),
    "empty": (GOOD_X[:0], ValueError, r"\(0, 6\).*at least one row"),
    "no columns": (GOOD_X[:, :0], ValueError, r"\(60, 0\)"),
    "nan": (broken(GOOD_X, (3, 2), np.nan), ValueError, r"X\[3, 2\] is nan"),
    "inf": (broken(GOOD_X, (59, 5), -np.inf), ValueError, r"X\[59, 5\] is -inf"),
    "too large": (broken(GOOD_X.astype("f8"), (7, 0), 1e300), ValueError, r"X\[7, 0\] is 1e\+300, too large for float32"),
    "objects": (GOOD_X.astype(object), TypeError, "object"),
    "complex": (GOOD_X.astype(complex), TypeError, "complex"),
    "text": (GOOD_X.astype(str), TypeError, "text"),
    "text in lists": ([["a"] * 6] * 60, TypeError, "text"),
    "dates": (np.zeros((60, 6), "M8[s]"), TypeError, "dates"),
    "None": (None, TypeError, "NoneType"),
    "ragged": ([[1.0] * 6, [1.0] * 5], ValueError, "equal length"),
    "dictionary": ({"x": 1}, TypeError, "dict"),
}
BAD_Y: dict[str, tuple[Any, type[Exception], str]] = {
    "one too few": (GOOD_Y[:-1], ValueError, r"59 entries but X has 60"),
    "one too many": (np.append(GOOD_Y, 0), ValueError, r"61 entries but X has 60"),
    "label 3": (np.where(np.arange(60) == 7, 3, GOOD_Y), ValueError, r"y\[7\] is 3.*0\.\.2"),
    "label -1": (np.where(np.arange(60) == 9, -1, GOOD_Y), ValueError, r"y\[9\] is -1"),
    "label 0.5": (np.where(np.arange(60) == 1, 0.5, GOOD_Y), ValueError, r"y\[1\] is 0.5"),
    "nan": (np.where(np.arange(60) == 5, np.nan, GOOD_Y), ValueError, r"y\[5\] is nan"),
    "empty": ([], ValueError, "0 entries but X has 60"),
    "text": (np.array(["a", "b", "c"])[GOOD_Y], TypeError, "text"),
    "objects": (np.array([None] * 60), TypeError, "None"),
    "complex": (GOOD_Y.astype(complex), TypeError, "complex"),
    "None": (None, TypeError, "NoneType"),
    "ragged": ([[1, 0, 0], [1, 0]], ValueError, "equal length"),
    "columns": (np.ones((60, 2)) / 2, ValueError, r"\(60, 2\)"),
    "rows of two": (np.full((60, 3), 2.0), ValueError, "probabilities"),
    "negative": (np.tile([1.5, -0.5, 0], (60, 1)), ValueError, "probabilities"),
    "do not add up": (np.full((60, 3), 0.1), ValueError, r"y\[\d+\] add up to 0.3"),
    "rows with nan": (np.full((60, 3), np.nan), ValueError, r"y\[0, 0\] is nan"),
    "too few rows": (np.eye(3)[GOOD_Y[:50]], ValueError, "50 rows but X has 60"),
}
BAD_WEIGHT: dict[str, tuple[Any, type[Exception], str]] = {
    "negative": (np.where(np.arange(60) == 4, -1.0, 1), ValueError, r"sample_weight\[4\] is -1"),
    "nan": (np.where(np.arange(60) == 4, np.nan, 1), ValueError, r"sample_weight\[4\] is nan"),
    "length": (np.ones(59), ValueError, "59 entries but X has 60"),
    "zero everywhere": (np.zeros(60), ValueError, "zero everywhere"),
    "columns": (np.ones((60, 3)), ValueError, r"\(60, 3\)"),
    "text": (["heavy"] * 60, TypeError, "text"),
    "number": (2.0, ValueError, r"\(\)"),
}
CASES = [("X", name) for name in BAD_X] + [("y", name) for name in BAD_Y] + [("sample_weight", name) for name in BAD_WEIGHT]


def uses(net: MLP, what: str, bad: Any) -> dict[str, Callable[[], object]]:
    X, y, weight = (
        (bad if what == "X" else GOOD_X),
        (bad if what == "y" else GOOD_Y),
        (bad if what == "sample_weight" else None),
    )
    sgd = SGD(0.1, momentum=0.9)
    calls: dict[str, Callable[[], object]] = {
        "gradient": lambda: net.gradient(X, y, sample_weight=weight),
        "train_step": lambda: net.train_step(X, y, sgd, sample_weight=weight),
        "fit": lambda: net.fit(X, y, epochs=2, batch_size=16, sample_weight=weight),
        "evaluate": lambda: net.evaluate(X, y, sample_weight=weight),
    }
    if what == "X":
        calls |= {"forward": lambda: net.forward(X), "predict": lambda: net.predict(X)}
        calls |= {"predict_proba": lambda: net.predict_proba(X)}
    if what in ("X", "y"):
        calls["validation"] = lambda: net.fit(GOOD_X, GOOD_Y, epochs=2, validation_data=(X, y))
    return calls


@pytest.mark.parametrize(("what", "name"), CASES)
def test_bad_arrays(what: str, name: str) -> None:
    value, kind, words = {"X": BAD_X, "y": BAD_Y, "sample_weight": BAD_WEIGHT}[what][name]
    net = small()
    before = digest(net.theta)
    for use, call in uses(net, what, value).items():
        with pytest.raises(kind, match=words) as error:
            call()
        one_sentence(error)
        assert type(error.value) is kind, use
        assert digest(net.theta) == before and net.epochs_trained == 0, f"{use} has changed the network"


@pytest.mark.parametrize("loss", ["squared_error", "huber", "binary_cross_entropy"])
@pytest.mark.parametrize(
    ("y", "words"),
    [
        (np.full((60, 3), np.nan), r"y\[0, 0\] is nan"),
        (np.ones((60, 2)), r"\(60, 2\)"),
        (np.ones((59, 3)), "59 rows"),
        (np.full((60, 3), 1e300), "too large"),
        (np.full(60, 3), r"y\[0\] is 3"),
    ],
)
def test_bad_targets(loss: str, y: Array, words: str) -> None:
    net = small(loss=loss)
    before = digest(net.theta)
    for call in uses(net, "y", y).values():
        with pytest.raises(ValueError, match=words) as error:
            call()
        one_sentence(error)
    assert digest(net.theta) == before


NETS: dict[str, tuple[Callable[[], object], type[Exception], str]] = {
    "no layers": (lambda: MLP([]), ValueError, "two or more"),
    "one layer": (lambda: MLP([3]), ValueError, "two or more"),
    "zero units": (lambda: MLP([3, 0, 2]), ValueError, "positive"),
    "negative units": (lambda: MLP([3, -5, 2]), ValueError, "positive"),
    "half a unit": (lambda: MLP([3, 2.5, 2]), ValueError, "integers"),
    "True units": (lambda: MLP([3, True, 2]), ValueError, "integers"),
    "units as text": (lambda: MLP("784-10"), ValueError, "integers"),
    "a number": (lambda: MLP(5), ValueError, "two or more"),
    "None": (lambda: MLP(None), ValueError, "two or more"),
    "activation": (lambda: small(activation="rleu"), ValueError, "did you mean 'relu'"),
    "activation in a list": (lambda: small(activation=["relu", "sigmiod"]), ValueError, "did you mean 'sigmoid'"),
    "activation None": (lambda: small(activation=None), TypeError, "activation"),
    "activation number": (lambda: small(activation=3), TypeError, "activation"),
    "activation list of numbers": (lambda: small(activation=[3, 4]), TypeError, "activation"),
    "softmax hidden": (lambda: small(activation="softmax"), ValueError, "softmax"),
    "too few activations": (lambda: small(activation=["relu"]), ValueError, "1 activations for 2 hidden layers"),
    "too many activations": (lambda: small(activation=["relu"] * 3), ValueError, "3 activations for 2 hidden layers"),
    "loss": (lambda: small(loss="cross_entropie"), ValueError, "did you mean 'cross_entropy'"),
    "loss None": (lambda: small(loss=None), TypeError, "loss must be a string"),
    "output": (lambda: small(loss="huber", output_activation="tanhh"), ValueError, "did you mean 'tanh'"),
    "output and loss": (lambda: small(output_activation="relu"), ValueError, "cross_entropy goes with.*softmax"),
    "bce and softmax": (lambda: small(loss="binary_cross_entropy", output_activation="softmax"), ValueError, "sigmoid"),
    "softmax and squares": (lambda: small(loss="squared_error", output_activation="softmax"), ValueError, "cross_entropy"),
    "one class": (lambda: MLP([3, 1]), ValueError, "binary_cross_entropy"),
    "reduction": (lambda: small(reduction="average"), ValueError, "mean, sum"),
    "reduction spelled": (lambda: small(reduction="maen"), ValueError, "did you mean 'mean'"),
    "more than fits": (lambda: MLP([10**12, 10**12]), MemoryError, "10{12}, 10{12}.*parameters of float32.*smaller layers"),
    "dtype": (lambda: small(dtype="flaot32"), ValueError, "did you mean 'float32'"),
    "float16": (lambda: small(dtype="float16"), ValueError, "float32, float64"),
    "int": (lambda: small(dtype=int), ValueError, "float32, float64"),
    "dtype None": (lambda: small(dtype=None), (ValueError, TypeError), "dtype"),  # type: ignore[dict-item]
    "seed": (lambda: small(seed=-1), ValueError, "seed is -1"),
    "seed 2^64": (lambda: small(seed=2**64), ValueError, "2\\^64"),
    "seed text": (lambda: small(seed="1"), ValueError, "seed"),
    "seed None": (lambda: small(seed=None), ValueError, "seed"),
    "backend": (lambda: small(backend="cpuu"), ValueError, "did you mean 'cpu'"),
    "backend number": (lambda: small(backend="cpu:1"), ValueError, "cpu:1"),
    "backend None": (lambda: small(backend=None), TypeError, "backend must be a string"),
    "learning rate": (lambda: SGD(-0.1), ValueError, "learning_rate is -0.1"),
    "learning rate nan": (lambda: SGD(float("nan")), ValueError, "learning_rate is nan"),
    "learning rate text": (lambda: SGD("fast"), ValueError, "learning_rate is 'fast'"),
    "momentum 1": (lambda: SGD(0.1, momentum=1.0), ValueError, "momentum is 1.0"),
    "momentum below 0": (lambda: SGD(0.1, momentum=-0.5), ValueError, "momentum is -0.5"),
    "weight decay": (lambda: SGD(0.1, weight_decay=-1), ValueError, "weight_decay is -1"),
    "nesterov": (lambda: SGD(0.1, nesterov=True), ValueError, "momentum"),
    "probabilities": (lambda: small(loss="huber").predict_proba(GOOD_X), ValueError, "no probabilities"),
}


@pytest.mark.parametrize("name", NETS)
def test_bad_options(name: str) -> None:
    call, kind, words = NETS[name]
    with pytest.raises(kind, match=words) as error:
        call()
    one_sentence(error)


FITS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "no epochs": ({"epochs": 0}, ValueError, "epochs is 0"),
    "negative epochs": ({"epochs": -3}, ValueError, "epochs is -3"),
    "half an epoch": ({"epochs": 0.5}, ValueError, "epochs is 0.5"),
    "epochs as text": ({"epochs": "10"}, ValueError, "epochs is '10'"),
    "batch of 0": ({"batch_size": 0}, ValueError, "batch_size is 0"),
    "batch of -1": ({"batch_size": -1}, ValueError, "batch_size is -1"),
    "batch None": ({"batch_size": None}, ValueError, "batch_size is None"),
    "optimizer": ({"optimizer": "sgd"}, TypeError, "SGD"),
    "optimizer class": ({"optimizer": SGD}, TypeError, "SGD"),
    "learning rate": ({"optimizer": 0.1}, TypeError, "SGD"),
    "validation share": ({"validation_data": 0.1}, (TypeError, ValueError), "validation_data"),  # type: ignore[dict-item]
    "validation of one": ({"validation_data": (GOOD_X,)}, (TypeError, ValueError), "validation_data"),  # type: ignore[dict-item]
    "validation of four": (
        {"validation_data": (GOOD_X, GOOD_Y, np.ones(60), None)}, (TypeError, ValueError), "validation_data"  # type: ignore[dict-item]
    ),
    "validation X": ({"validation_data": (GOOD_X * np.nan, GOOD_Y)}, ValueError, r"^validation X\[0, 0\] is nan"),
    "validation y": ({"validation_data": (GOOD_X, GOOD_Y + 3)}, ValueError, r"^validation y\[\d+\] is \d"),
    "validation weights": (
        {"validation_data": (GOOD_X, GOOD_Y, -np.ones(60))}, ValueError, r"^validation sample_weight\[0\] is -1"
    ),
    "shuffle": ({"shuffle": "yes"}, TypeError, "shuffle is 'yes'; expected True, False or a function"),
    "callbacks": ({"callbacks": 3}, TypeError, "callbacks"),
}  # fmt: skip


@pytest.mark.parametrize("name", FITS)
def test_bad_options_of_fit(name: str) -> None:
    options, kind, words = FITS[name]
    net = small()
    before = digest(net.theta)
    with pytest.raises(kind, match=words) as error:
        net.fit(GOOD_X, GOOD_Y, **{"epochs": 2, "batch_size": 16, **options})
    one_sentence(error)
    assert digest(net.theta) == before and net.epochs_trained == 0


def test_backends() -> None:
    found = bpgpu.backends()
    assert found["cpu"] == found["numpy"] == "available" and "cuda" in found
    if found["cuda"] != "available":
        with pytest.raises(bpgpu.BackendUnavailable) as error:
            small(backend="cuda")
        assert one_sentence(error) == found["cuda"]
    assert bpgpu.get_backend("cpu") is bpgpu.get_backend("cpu") is bpgpu.get_backend(bpgpu.get_backend("cpu"))


# -- files ----------------------------------------------------------------------------------------------------------------

KINDS: list[dict[str, Any]] = [
    {},
    {"dtype": "float64", "activation": ["gelu", "selu"], "seed": 2**64 - 1},
    {"loss": "huber", "output_activation": "tanh", "reduction": "sum"},
    {"loss": "binary_cross_entropy", "activation": "silu"},
]


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("kind", range(len(KINDS)))
def test_round_trip(kind: int, backend: str, tmp_path: Path) -> None:
    net, (X, y) = small(**KINDS[kind]), blobs()
    net.fit(X, y % 2 if "loss" not in KINDS[kind] else np.eye(3)[y], epochs=2)
    net.classes = ("zéro", "one", "two")
    net.save(tmp_path / "model.safetensors")
    other = bpgpu.load(tmp_path / "model.safetensors", backend=backend)
    assert digest(other.theta) == digest(net.theta) and other.backend.name == backend
    for name in (
        "layers", "activations", "loss", "output_activation", "reduction", "dtype", "seed", "classes", "epochs_trained",
    ):  # fmt: skip
        assert getattr(other, name) == getattr(net, name), name
    other.save(str(tmp_path / "again.safetensors"))
    assert (tmp_path / "again.safetensors").read_bytes() == (tmp_path / "model.safetensors").read_bytes()
    np.testing.assert_allclose(other.outputs(X), net.outputs(X), rtol=1e-4, atol=1e-6)
    other.weights[0][0, 0] = 5
    assert other.theta[0] == 5, "a loaded network is one like any other"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["again.safetensors", "model.safetensors"], "nothing is left over"


def test_training_goes_on_after_loading(tmp_path: Path) -> None:
    X, y = blobs()
    net = small()
    net.fit(X, y, epochs=2, batch_size=16, optimizer=SGD(0.1))
    net.save(tmp_path / "m")
    other = bpgpu.load(tmp_path / "m")
    for n in (net, other):
        n.fit(X, y, epochs=2, batch_size=16, optimizer=SGD(0.1))
    assert digest(net.theta) == digest(other.theta)


def test_the_file_is_plain_safetensors(tmp_path: Path) -> None:
    safetensors = pytest.importorskip("safetensors.numpy")
    net = small()
    net.save(tmp_path / "m")
    tensors = safetensors.load_file(tmp_path / "m")
    assert sorted(tensors) == [*(f"biases.{l}" for l in range(3)), *(f"weights.{l}" for l in range(3))]
    assert np.array_equal(tensors["weights.1"], net.weights[1]) and np.array_equal(tensors["biases.2"], net.biases[2])
    content = (tmp_path / "m").read_bytes()
    header = json.loads(content[8 : 8 + struct.unpack("<Q", content[:8])[0]])
    assert json.loads(header["__metadata__"]["bpgpu"])["layers"] == [6, 9, 5, 3]


@pytest.mark.skipif(os.name != "posix", reason="permissions as on POSIX")
def test_the_file_has_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").write_text("")
    small().save(tmp_path / "m")
    assert (tmp_path / "m").stat().st_mode == (tmp_path / "plain").stat().st_mode


def saved(folder: Path, **options: Any) -> bytes:
    small(**options).save(folder / "whole")
    return (folder / "whole").read_bytes()


def repacked(content: bytes, change: Callable[[dict[str, Any], dict[str, Any]], object]) -> bytes:
    """The same file with another header; change(header, architecture)."""
    size = struct.unpack("<Q", content[:8])[0]
    header = json.loads(content[8 : 8 + size])
    architecture = json.loads(header["__metadata__"]["bpgpu"])
    change(header, architecture)
    if "__metadata__" in header and "bpgpu" in header["__metadata__"]:
        header["__metadata__"]["bpgpu"] = json.dumps(architecture)
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + content[8 + size :]


def test_truncated_files(tmp_path: Path) -> None:
    content = saved(tmp_path)
    size = struct.unpack("<Q", content[:8])[0]
    for length in (
        0,
        1,
        7,
        8,
        9,
        size // 2,
        8 + size - 1,
        8 + size,
        8 + size + 1,
        8 + size + 100,
        len(content) // 2,
        len(content) - 1,
    ):
        (tmp_path / "cut").write_bytes(content[:length])
        with pytest.raises(ValueError, match="cut") as error:
            bpgpu.load(tmp_path / "cut")
        one_sentence(error)
    (tmp_path / "cut").write_bytes(content)
    bpgpu.load(tmp_path / "cut")


FOREIGN: dict[str, Callable[[bytes], bytes]] = {
    "random bytes": lambda c: np.random.default_rng(0).bytes(5000),
    "zeros": lambda c: bytes(5000),
    "text": lambda c: b"this is no model\n" * 100,
    "pickle": lambda c: pickle.dumps({"weights": [1, 2, 3]}),
    "zip": lambda c: b"PK\x03\x04" + bytes(1000),
    "huge header": lambda c: struct.pack("<Q", 2**62) + c[8:],
    "more than a model": lambda c: c + b"more",
    "safetensors of others": lambda c: repacked(c, lambda h, a: h.pop("__metadata__")),
    "metadata of others": lambda c: repacked(c, lambda h, a: h["__metadata__"].pop("bpgpu")),
    "no layers": lambda c: repacked(c, lambda h, a: a.pop("layers")),
    "wrong layers": lambda c: repacked(c, lambda h, a: a.update(layers=[6, 9, 5, 4])),
    "swapped layers": lambda c: repacked(c, lambda h, a: a.update(layers=[9, 6, 5, 3])),
    "negative layers": lambda c: repacked(c, lambda h, a: a.update(layers=[6, -9, 5, 3])),
    "fewer layers": lambda c: repacked(c, lambda h, a: a.update(layers=[6, 9, 5], activations=["tanh"])),
    "enormous layers": lambda c: repacked(c, lambda h, a: a.update(layers=[10**7, 10**7, 5, 3])),
    "unknown activation": lambda c: repacked(c, lambda h, a: a.update(activations=["tanh", "mish"])),
    "loss of the future": lambda c: repacked(c, lambda h, a: a.update(loss="focal")),
    "number for a text": lambda c: repacked(c, lambda h, a: a.update(loss=3)),
    "text for a number": lambda c: repacked(c, lambda h, a: a.update(epochs_trained="many")),
    "seed": lambda c: repacked(c, lambda h, a: a.update(seed=-1)),
    "null": lambda c: repacked(c, lambda h, a: a.update(dict.fromkeys(a))),
    "tensor missing": lambda c: repacked(c, lambda h, a: h.update({"other": h.pop("weights.1")})),
    "tensor of another shape": lambda c: repacked(c, lambda h, a: h["weights.0"].update(shape=[9, 6])),
    "tensor of integers": lambda c: repacked(c, lambda h, a: h["weights.0"].update(dtype="I32")),
    "tensor of bfloat16": lambda c: repacked(c, lambda h, a: h["weights.0"].update(dtype="BF16", shape=[12, 9])),
    "bad metadata": lambda c: c.replace(b'{\\"layers', b'["layers\\'),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_foreign_files(name: str, tmp_path: Path) -> None:
    content = saved(tmp_path)
    changed = FOREIGN[name](content)
    assert changed != content
    (tmp_path / "foreign").write_bytes(changed)
    for backend in BACKENDS:
        with pytest.raises(ValueError, match="foreign") as error:
            bpgpu.load(tmp_path / "foreign", backend=backend)
        one_sentence(error)


def test_repacking_is_harmless(tmp_path: Path) -> None:
    """The files above are refused for what was changed in them, not for being written anew."""
    (tmp_path / "same").write_bytes(repacked(saved(tmp_path), lambda h, a: None))
    assert digest(bpgpu.load(tmp_path / "same").theta) == digest(small().theta)


def test_paths_that_cannot_be_read_or_written(tmp_path: Path) -> None:
    net = small()
    with pytest.raises(FileNotFoundError):
        bpgpu.load(tmp_path / "nothing")
    with pytest.raises(OSError):
        bpgpu.load(tmp_path)
    with pytest.raises(OSError):
        net.save(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"model: there is no directory .*nowhere; create it first"):
        net.save(tmp_path / "nowhere" / "model")
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_backend_is_not_the_files_fault(tmp_path: Path) -> None:
    small().save(tmp_path / "m")
    with pytest.raises(ValueError, match="did you mean 'cpu'") as error:
        bpgpu.load(tmp_path / "m", backend="cqu")
    assert "damaged" not in one_sentence(error)
    with pytest.raises(TypeError, match="backend must be a string"):
        bpgpu.load(tmp_path / "m", backend=None)  # type: ignore[arg-type]


def test_a_full_disk_keeps_the_old_file(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource")
    small().save(tmp_path / "m")
    old = (tmp_path / "m").read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (len(old) // 2, limits[1]))
        with pytest.raises(OSError) as error:
            small(seed=9).save(tmp_path / "m")
        assert f"{tmp_path / 'm'} cannot be written (" in one_sentence(error) and "is kept" in str(error.value)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert (tmp_path / "m").read_bytes() == old and [p.name for p in tmp_path.iterdir()] == ["m"]


def test_a_read_only_folder(tmp_path: Path) -> None:
    folder = tmp_path / "sealed"
    folder.mkdir()
    folder.chmod(0o555)
    try:
        if os.access(folder, os.W_OK):
            pytest.skip("this user may write anywhere")
        with pytest.raises(PermissionError):
            small().save(folder / "m")
    finally:
        folder.chmod(0o755)


SAVING = """
import itertools, sys, bpgpu
net = bpgpu.MLP([300, 700, 10], backend="numpy")
print("ready", flush=True)
for k in itertools.count(1):
    net.theta[:] = k
    net.save(sys.argv[1])
"""


@pytest.mark.parametrize("when", ["before", "after"])
def test_ctrl_c_while_a_file_is_renamed(tmp_path: Path, when: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is Ctrl-C that is heard of, and nothing is left beside the file."""
    net, replace = MLP([3, 2], seed=1), os.replace

    def interrupted(source: str, target: str) -> None:
        if when == "after":
            replace(source, target)
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(KeyboardInterrupt):
        net.save(tmp_path / "model")
    assert [file.name for file in tmp_path.iterdir()] == (["model"] if when == "after" else [])


@pytest.mark.skipif(os.name != "posix", reason="needs SIGKILL")
def test_killed_while_saving(tmp_path: Path) -> None:
    """At any moment the file is a whole one: all of its numbers are of one and the same save."""
    path, rng, seen = tmp_path / "model.safetensors", np.random.default_rng(0), set()
    net = MLP([300, 700, 10], backend="numpy")
    net.theta[:] = 0
    net.save(path)
    for _ in range(10):
        child = subprocess.Popen([sys.executable, "-c", SAVING, str(path)], stdout=subprocess.PIPE)
        try:
            assert child.stdout is not None and child.stdout.readline() == b"ready\n"
            time.sleep(float(rng.uniform(0, 0.05)))
        finally:
            child.send_signal(signal.SIGKILL)
            child.wait(30)
            child.stdout.close()
        theta = bpgpu.load(path, backend="numpy").theta
        assert (theta == theta[0]).all()
        seen.add(float(theta[0]))
    assert len(seen) > 1, "no save came to its end: the moments are not spread"


# -- outputs, again and again --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_outputs_stay_what_they_were(backend: str) -> None:
    """The arrays inside are used again; those given out are the caller's."""
    net = bpgpu.MLP([5, 7, 3], backend=backend, seed=3)
    batches = [np.random.default_rng(n).standard_normal((n, 5)) for n in (1, 4, 1, 9, 2, 3, 6, 1)]
    given = [net.outputs(X) for X in batches]
    kept = [a.copy() for a in given]
    before = net.predict_proba(batches[0])
    net.theta *= 2  # outputs follow the weights
    assert not np.array_equal(net.outputs(batches[0]), before)
    for a, copy, X in zip(given, kept, batches, strict=True):
        assert np.array_equal(a, copy) and a.shape == (len(X), 3)


def test_outputs_from_several_python_threads() -> None:
    net = bpgpu.MLP([20, 50, 4], seed=3)
    batches = [np.random.default_rng(n).standard_normal((n % 7 + 1, 20)) for n in range(200)]
    expected = [net.outputs(X) for X in batches]
    with ThreadPoolExecutor(4) as pool:
        for a, wanted in zip(pool.map(net.outputs, batches), expected, strict=True):
            assert np.array_equal(a, wanted)
