"""Every operation of the seam, timed and held against plain NumPy in float64; run as tests unless --benchmark-enable.

An operation is recorded once and its program is timed: the kernel and a call, without the checks of the arguments.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import bpgpu
from bpgpu.backend import Array, Backend
from bpgpu.kernels.names import RULES
from bpgpu.reference import descend
from bpgpu.training import Step

from .networks import LEARNING_RATE, NETWORKS
from .peers import numpy_step

F32 = np.float32
OPTIMIZERS = {
    "sgd": bpgpu.SGD(LEARNING_RATE), "momentum": bpgpu.SGD(LEARNING_RATE, 0.9),
    "nesterov": bpgpu.SGD(LEARNING_RATE, 0.9, nesterov=True), "rmsprop": bpgpu.RMSprop(LEARNING_RATE),
    "adam": bpgpu.Adam(LEARNING_RATE),
}  # fmt: skip
LAYERS = {"mnist": (128, 784, 1024), "output": (128, 1024, 10), "deep": (256, 2500, 2000), "one": (1, 1024, 1024)}
layers = pytest.mark.parametrize(("n", "i", "o"), LAYERS.values(), ids=LAYERS)
SPIN = 0.2  # seconds for which the threads of NumPy's BLAS may still be busy after the check


@pytest.fixture(params=["cpu", "cuda", "numpy"])
def backend(request: pytest.FixtureRequest) -> Backend:
    if (state := bpgpu.backends()[request.param]) != "available":
        pytest.skip(f"backend {request.param}: {state}")
    return bpgpu.get_backend(request.param)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape, F32)


def time_it(benchmark: BenchmarkFixture, backend: Backend, issue: Callable[[], Any], **work: float) -> None:
    """Time what issue() asks of the backend; work: operations or bytes of a call, noted as GFLOP/s or GB/s."""
    with backend.capture() as program:
        issue()
    if not benchmark.disabled:
        time.sleep(SPIN)
    one = backend.empty((1,), F32)

    def run() -> None:
        program.run()
        backend.to_numpy(one)  # waits for a device that works on its own

    benchmark(run)
    if benchmark.stats is not None:
        for name, amount in work.items():
            benchmark.extra_info[name] = round(amount / benchmark.stats.stats.median / 1e9, 2)


def close(found: Array, exact: Array, scale: Any) -> None:
    """Equal to rounding: `scale` is the size of what was added up."""
    assert (np.abs(found - exact) <= 32 * np.finfo(F32).eps * scale).all()


def size(X: Array, W: Array) -> Array:
    """Of what is added up in X W: no less than |X| |W|, by Cauchy and Schwarz."""
    return np.outer(np.sqrt(np.square(X).sum(axis=1)), np.sqrt(np.square(W).sum(axis=0)))


def wide(*arrays: Array) -> list[Array]:
    return [array.astype(np.float64) for array in arrays]


@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.benchmark(group="dense_forward")
@layers
def test_dense_forward(
    benchmark: BenchmarkFixture, backend: Backend, rng: np.random.Generator, n: int, i: int, o: int, activation: str
) -> None:
    X, W, b = normal(rng, n, i), normal(rng, i, o), normal(rng, o)
    x, w, bias = (backend.asarray(array) for array in (X, W, b))
    A = backend.dense_forward(x, w, bias, activation)
    X, W, b = wide(X, W, b)
    Z = X @ W + b
    close(backend.to_numpy(A), np.maximum(Z, 0) if activation == "relu" else np.tanh(Z), size(X, W) + abs(b))
    time_it(benchmark, backend, lambda: backend.dense_forward(x, w, bias, activation, A=A), **{"GFLOP/s": 2 * n * i * o})


@pytest.mark.benchmark(group="hidden_delta")
@layers
def test_hidden_delta(benchmark: BenchmarkFixture, backend: Backend, rng: np.random.Generator, n: int, i: int, o: int) -> None:
    dZ, W, A = normal(rng, n, o), normal(rng, i, o), np.tanh(normal(rng, n, i))
    dz, w, a = (backend.asarray(array) for array in (dZ, W, A))
    below = backend.hidden_delta(dz, w, a, "tanh")
    dZ, W, A = wide(dZ, W, A)
    close(backend.to_numpy(below), dZ @ W.T * (1 - A * A), size(dZ, W.T))
    time_it(benchmark, backend, lambda: backend.hidden_delta(dz, w, a, "tanh", dZ_below=below), **{"GFLOP/s": 2 * n * i * o})


@pytest.mark.benchmark(group="dense_gradient")
@layers
def test_dense_gradient(
    benchmark: BenchmarkFixture, backend: Backend, rng: np.random.Generator, n: int, i: int, o: int
) -> None:
    X, dZ = normal(rng, n, i), normal(rng, n, o)
    x, dz = backend.asarray(X), backend.asarray(dZ)
    dW, db = backend.dense_gradient(x, dz)
    X, dZ = wide(X, dZ)
    close(backend.to_numpy(dW), X.T @ dZ, size(X.T, dZ))
    close(backend.to_numpy(db), dZ.sum(axis=0), abs(dZ).sum(axis=0))
    time_it(benchmark, backend, lambda: backend.dense_gradient(x, dz, dW=dW, db=db), **{"GFLOP/s": 2 * n * i * o})


@pytest.mark.benchmark(group="dense_update")
@pytest.mark.parametrize("rule", RULES)
@layers
def test_dense_update(
    benchmark: BenchmarkFixture, backend: Backend, rng: np.random.Generator, n: int, i: int, o: int, rule: str
) -> None:
    X, dZ, W, b = normal(rng, n, i), normal(rng, n, o), normal(rng, i, o), normal(rng, o)
    hyper = OPTIMIZERS[rule].hyper(F32, layers=1)[0, 0]
    states = [(backend.asarray(np.ones_like(W)), backend.asarray(np.ones_like(b))) for _ in RULES[rule]]
    x, dz, w, bias, numbers = (backend.copy(backend.asarray(array)) for array in (X, dZ, W, b, hyper))
    backend.dense_update(x, dz, w, bias, rule, numbers, states)
    X, dZ, W, b = wide(X, dZ, W, b)
    lr = float(hyper[0, 0])
    for got, parameter, gradient, scale, its in (
        (w, W, X.T @ dZ, size(X.T, dZ), hyper[0]),
        (bias, b, dZ.sum(axis=0), abs(dZ).sum(axis=0), hyper[1]),
    ):
        expected = parameter.copy()
        descend(expected, gradient, rule, its.astype(np.float64), [np.ones_like(parameter) for _ in states])
        close(backend.to_numpy(got), expected, abs(parameter) + lr * (1 + scale))
    time_it(
        benchmark, backend, lambda: backend.dense_update(x, dz, w, bias, rule, numbers, states),
        **{"GFLOP/s": 2 * n * i * o},
    )  # fmt: skip


@pytest.mark.benchmark(group="output_delta")
@pytest.mark.parametrize(("n", "o"), [(128, 10), (4096, 10), (128, 1000)])
def test_output_delta(benchmark: BenchmarkFixture, backend: Backend, rng: np.random.Generator, n: int, o: int) -> None:
    Z, y = normal(rng, n, o), rng.integers(0, o, n)
    z, labels, scale = backend.asarray(Z), backend.asarray(y), backend.asarray(np.full(1, 1 / n, F32))
    dZ, losses = backend.output_delta(z, labels, scale=scale)
    (Z,) = wide(Z)
    e = np.exp(Z - Z.max(axis=1, keepdims=True))
    total = e.sum(axis=1, keepdims=True)
    close(backend.to_numpy(dZ), (e / total - np.eye(o)[y]) / n, 1 / n)
    close(backend.to_numpy(losses), (Z.max(axis=1) + np.log(total[:, 0]) - Z[np.arange(n), y]) / n, 8 / n)
    time_it(
        benchmark, backend, lambda: backend.output_delta(z, labels, scale=scale, dZ=dZ, losses=losses),
        **{"GB/s": 2 * Z.size * 4},
    )  # fmt: skip


@pytest.mark.benchmark(group="update")
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("p", [109_386, 1_863_690])
def test_update(benchmark: BenchmarkFixture, backend: Backend, rng: np.random.Generator, p: int, rule: str) -> None:
    w, g, v = normal(rng, p), normal(rng, p), normal(rng, p)
    hyper = OPTIMIZERS[rule].hyper(F32, layers=1)[0, 0, 0]
    states = [backend.asarray(abs(v)) for _ in RULES[rule]]
    parameter, gradient, numbers = (backend.copy(backend.asarray(array)) for array in (w, g, hyper))
    expected = [array.astype(np.float64) for array in (w, abs(v), abs(v))]
    descend(expected[0], g.astype(np.float64), rule, hyper.astype(np.float64), expected[1 : 1 + len(states)])
    backend.update(parameter, gradient, rule, numbers, states)
    for got, wanted in zip((parameter, *states), expected, strict=False):
        close(backend.to_numpy(got), wanted, 1 + abs(wanted))
    time_it(
        benchmark, backend, lambda: backend.update(parameter, gradient, rule, numbers, states),
        **{"GB/s": p * 4 * (3 + 2 * len(states))},
    )  # fmt: skip


@pytest.mark.benchmark(group="dropout")
@pytest.mark.parametrize(("n", "u"), [(128, 1024), (4096, 1024)])
def test_dropout(benchmark: BenchmarkFixture, backend: Backend, rng: np.random.Generator, n: int, u: int) -> None:
    A, rate = normal(rng, n, u), 0.3
    a, target, key = backend.asarray(A), backend.empty((n, u), F32), backend.asarray(np.array([7, 0]))
    found = backend.to_numpy(backend.dropout(a, rate, key, 1, target=target))
    kept = found != 0
    assert np.array_equal(found, np.where(kept, A * F32(1 / (1 - rate)), 0))
    assert abs(kept.mean() - (1 - rate)) < 5 * np.sqrt(rate * (1 - rate) / kept.size)
    time_it(benchmark, backend, lambda: backend.dropout(a, rate, key, 1, target=target), **{"GB/s": 2 * A.size * 4})


@pytest.mark.benchmark(group="activate")
@pytest.mark.parametrize("activation", ["tanh", "gelu", "softmax"])
def test_activate(benchmark: BenchmarkFixture, backend: Backend, rng: np.random.Generator, activation: str) -> None:
    Z = normal(rng, 4096, 1024)
    z, A = backend.asarray(Z), backend.empty(Z.shape, F32)
    found = backend.to_numpy(backend.activate(z, activation, A=A))
    exact = bpgpu.get_backend("numpy").activate(*wide(Z), activation)
    close(found, exact, np.maximum(abs(exact), 1e-3))
    time_it(benchmark, backend, lambda: backend.activate(z, activation, A=A), **{"GB/s": 2 * Z.size * 4})


@pytest.mark.benchmark(group="gather")
@pytest.mark.parametrize(("n", "i"), [(128, 784), (4096, 784)])
def test_gather(benchmark: BenchmarkFixture, backend: Backend, rng: np.random.Generator, n: int, i: int) -> None:
    X, rows = normal(rng, 8192, i), rng.permutation(8192)
    source, order, target = backend.asarray(X), backend.asarray(rows), backend.empty((n, i), F32)
    backend.gather(source, order, target)
    assert (backend.to_numpy(target) == X[rows[:n]]).all()
    time_it(benchmark, backend, lambda: backend.gather(source, order, target), **{"GB/s": 2 * n * i * 4})


@pytest.mark.benchmark(group="step")
@pytest.mark.parametrize("name", ["small", "mnist", "double"])
def test_step(benchmark: BenchmarkFixture, backend: Backend, name: str) -> None:
    network = NETWORKS[name]
    net = bpgpu.MLP(network.layers, activation=network.activation, dtype=network.dtype, backend=backend)
    for W, initial in zip(net.weights, network.weights(), strict=True):
        backend.write(W, initial)
    optimizer = bpgpu.SGD(LEARNING_RATE)
    trainer = net.trainer(optimizer)
    trainer.prepare(optimizer, 1)
    step, (X, y) = Step(net, network.batch, labels=True, weighted=False), network.data()
    backend.write(step.X, X)
    backend.write(step.y, y)
    with backend.capture() as program:
        step.record(trainer.losses, trainer.norms, trainer)
    program.run()
    reference = numpy_step(network, threads=0)
    loss = reference.call()
    eps = np.finfo(network.dtype).eps
    assert abs(float(backend.to_numpy(trainer.losses)[0]) - loss) <= 32 * eps * loss
    assert reference.weights is not None
    for W, expected in zip(net.weights, reference.weights(), strict=True):
        assert (abs(backend.to_numpy(W) - expected) <= eps).all()  # the step's largest moves are some hundred eps
    time_it(benchmark, backend, lambda: step.record(trainer.losses, trainer.norms, trainer), **{"GFLOP/s": network.flops})
