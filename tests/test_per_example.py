"""Gradients of single examples: norms, products and clipping without forming them are those of the explicit gradients."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from bpgpu import MLP, SGD
from bpgpu.backend import Backend
from bpgpu.cuda import CUDABackend
from tests.test_cuda import same

Array = np.ndarray[Any, Any]
TIGHT = {np.dtype("f4"): 2e-6, np.dtype("f8"): 4e-15}  # some roundings of products and sums of a few hundred terms


def network(**options: Any) -> MLP:
    return MLP([7, 30, 9, 4], **{"activation": ["tanh", "gelu"], "seed": 3} | options)


def batch(n: int = 23, seed: int = 0) -> tuple[Array, Array]:
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, 7)), rng.integers(0, 4, n)


def one_by_one(net: MLP, X: Array, y: Array) -> Array:
    """The plainest definition: the gradient of the network on each example alone."""
    return np.stack([np.asarray(net.gradient(X[n : n + 1], y[n : n + 1])[1]).copy() for n in range(len(X))])


def test_what_gradients_are_made_of_comes_to_the_host_once(monkeypatch: pytest.MonkeyPatch) -> None:
    net, (X, y), copied = network(), batch(), []
    to_numpy = net.backend.to_numpy
    monkeypatch.setattr(net.backend, "to_numpy", lambda array: copied.append(array.shape) or to_numpy(array))  # type: ignore[func-returns-value]
    net.per_example_gradients(X, y)
    assert sorted(copied) == sorted([(23, 7), (23, 30), (23, 30), (23, 9), (23, 9), (23, 4)])


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "squared_error"])
def test_gradients_are_those_of_each_example_alone(loss: str, reduction: str, dtype: np.dtype) -> None:
    net, (X, y) = network(loss=loss, reduction=reduction, dtype=dtype), batch()
    G = net.per_example_gradients(X, y)
    assert G.shape == (23, net.theta.size) and G.dtype == dtype
    assert same(G, one_by_one(net, X, y))  # of one term each: exact
    mean = net.gradient(X, y)[1] * (23 if reduction == "mean" else 1)
    np.testing.assert_allclose(G.sum(axis=0), mean, atol=TIGHT[dtype] * abs(G).sum(axis=0).max())


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_norms_and_products(backend: str, dtype: np.dtype) -> None:
    net, (X, y) = network(dtype=dtype, backend=backend), batch()
    G = one_by_one(net, X, y).astype("f8")
    norms, tight = net.per_example_norms(X, y), TIGHT[dtype]
    assert norms.total.shape == (23,) and norms.layers.shape == (23, 3)
    np.testing.assert_allclose(norms.total, np.linalg.norm(G, axis=1), rtol=tight)
    for l in range(3):
        layer = np.zeros(net.theta.size, bool)
        dW, db = net.views(layer)
        dW[l][:], db[l][:] = True, True
        np.testing.assert_allclose(norms.layers[:, l], np.linalg.norm(G[:, layer], axis=1), rtol=tight)
    gram = net.per_example_gram(X, y)
    np.testing.assert_allclose(gram, G @ G.T, atol=tight * (norms.total**2).max())
    assert np.array_equal(gram, gram.T)


def test_norms_of_many_examples_come_in_blocks() -> None:
    net, (X, y) = network(), batch(2500)
    norms = net.per_example_norms(X, y)
    parts = [net.per_example_norms(X[s : s + 77], y[s : s + 77]).total for s in range(0, 2500, 77)]
    assert np.array_equal(norms.total, np.concatenate(parts))


# -- the kernels ----------------------------------------------------------------------------------------------------------


def in_order(rows: Array) -> Array:
    """|row|^2 as the contract has it: chunks of 256, one fma a term.  In float64 a float32 product and sum are the fma's."""
    assert rows.dtype == np.float32
    total = np.zeros(len(rows), "f4")
    for start in range(0, rows.shape[1], 256):
        chunk = np.zeros(len(rows), "f4")
        for column in rows[:, start : start + 256].T.astype(np.longdouble):
            chunk = (column * column + chunk).astype("f4")
        total = total + chunk
    return total


@pytest.mark.parametrize(("n", "i", "o"), [(1, 1, 1), (3, 17, 5), (16, 256, 40), (37, 700, 257), (50, 300, 3)])
def test_norms_in_the_order_of_the_contract(cpu: Backend, n: int, i: int, o: int, rng: np.random.Generator) -> None:
    X, dZ = rng.standard_normal((n, i)).astype("f4"), rng.standard_normal((n, o)).astype("f4")
    x, d = in_order(X).astype(np.longdouble), in_order(dZ).astype(np.longdouble)
    expected = (x * d + d).astype("f4")
    norms = cpu.example_norms(X, dZ)
    assert same(norms, expected)
    cpu.example_norms(dZ, X, norms=norms, add=True)
    assert same(norms, expected + (x * d + x).astype("f4"))


def test_clip(cpu: Backend, dtype: np.dtype, rng: np.random.Generator) -> None:
    dZ, norms = rng.standard_normal((40, 33)).astype(dtype), (9 * rng.random(40) ** 2).astype(dtype)
    norms[:3] = 4, 0, np.inf
    for scale in (np.ones(1, dtype), rng.random(40).astype(dtype)):
        limit, mine = np.full(1, 2, dtype), dZ.copy()
        cpu.clip_examples(mine, norms, limit, scale)
        allowed, length = np.broadcast_to(limit * scale, 40), np.sqrt(norms)
        factor = np.where(length > allowed, allowed / np.where(length > 0, length, 1), 1).astype(dtype)
        assert same(mine, dZ * factor[:, None])


@pytest.mark.parametrize(("n", "layers"), [(1, [3, 2]), (70, [5, 300, 19, 3]), (5, [9000, 4, 2])])
def test_the_same_bits_on_both_backends(
    n: int, layers: list[int], dtype: np.dtype, rng: np.random.Generator, exact_cuda: CUDABackend
) -> None:
    X, y, weight = rng.standard_normal((n, layers[0])), rng.integers(0, layers[-1], n), rng.random(n)
    results = []
    for backend in ("cpu", exact_cuda):
        net = MLP(layers, dtype=dtype, activation="tanh", backend=backend, seed=1)
        limit = float(np.median(net.per_example_norms(X, y).total))
        first = [*net.per_example_norms(X, y), net.per_example_gradients(X, y), net.per_example_gram(X, y)]
        sgd = SGD(0.1, 0.9)
        for _ in range(3):
            net.train_step(X, y, sgd, sample_weight=weight, clip_per_example=limit)
        net.fit(X, y, epochs=2, batch_size=16, clip_per_example=limit)
        results.append([*first, net.gradient(X, y, clip_per_example=limit)[1], net.theta, net.gradient_noise_scale(X, y)[1:]]
                       if n > 1 else [*first, net.theta])  # fmt: skip
    assert all(same(a, b) for a, b in zip(*results, strict=True))


def test_bad_arrays_are_refused(cpu: Backend) -> None:
    X, dZ = np.ones((3, 4), "f4"), np.ones((3, 2), "f4")
    with pytest.raises(ValueError, match=r"dZ has shape \(2, 2\); expected \(3, o\)"):
        cpu.example_norms(X, dZ[:2])
    with pytest.raises(ValueError, match="add needs norms"):
        cpu.example_norms(X, dZ, add=True)
    with pytest.raises(ValueError, match=r"scale has shape \(2,\)"):
        cpu.clip_examples(dZ, np.ones(3, "f4"), np.ones(1, "f4"), np.ones(2, "f4"))
    with pytest.raises(TypeError, match="limit has dtype float64"):
        cpu.clip_examples(dZ, np.ones(3, "f4"), np.ones(1), np.ones(1, "f4"))


# -- clipping -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("weighted", [False, True])
def test_a_clipped_gradient_is_the_sum_of_clipped_gradients(weighted: bool, reduction: str, dtype: np.dtype) -> None:
    net, (X, y) = network(dtype=dtype, reduction=reduction), batch()
    weight = np.random.default_rng(1).random(23) if weighted else np.ones(23)
    G = one_by_one(net, X, y).astype("f8")
    norms = np.linalg.norm(G, axis=1)
    limit = float(np.median(norms))
    share = weight / (weight.sum() if reduction == "mean" else 1)
    expected = (share * np.minimum(1, limit / norms)) @ G
    loss, gradient = net.gradient(X, y, sample_weight=weight if weighted else None, clip_per_example=limit)
    assert loss == net.gradient(X, y, sample_weight=weight if weighted else None)[0]
    np.testing.assert_allclose(gradient, expected, atol=2 * TIGHT[dtype] * abs(G).max() * share.sum())


def test_a_limit_that_nothing_reaches_changes_no_bit() -> None:
    net, (X, y) = network(), batch()
    assert same(net.gradient(X, y, clip_per_example=1e30)[1], net.gradient(X, y)[1])
    theta = []
    for limit in (None, 1e30):
        trained = network()
        trained.fit(X, y, epochs=3, batch_size=10, clip_per_example=limit)
        theta.append(trained.theta)
    assert same(*theta)


@pytest.mark.parametrize("weighted", [False, True])
def test_training_steps_clip(weighted: bool) -> None:
    """A step moves theta by the clipped gradient, in train_step and in fit; both limits of one network keep apart."""
    (X, y), limit = batch(20), 0.3
    weight = np.random.default_rng(1).random(20) if weighted else None
    net = network(dtype="float64")
    assert np.median(net.per_example_norms(X, y).total) > limit
    for c in (limit, None, limit, 2 * limit):
        before, sgd = net.theta.copy(), SGD(0.1)
        expected = before - 0.1 * net.gradient(X, y, sample_weight=weight, clip_per_example=c)[1]
        loss = net.evaluate(X, y, sample_weight=weight)[0]
        assert net.train_step(X, y, sgd, sample_weight=weight, clip_per_example=c) == pytest.approx(loss, rel=1e-12)
        np.testing.assert_allclose(net.theta, expected, rtol=1e-12, atol=1e-15)
    before = net.theta.copy()
    expected = before - 0.1 * net.gradient(X, y, sample_weight=weight, clip_per_example=limit)[1]
    net.fit(X, y, epochs=1, batch_size=20, optimizer=SGD(0.1), sample_weight=weight, shuffle=False, clip_per_example=limit)
    np.testing.assert_allclose(net.theta, expected, rtol=1e-12, atol=1e-15)


def test_with_dropout_it_is_the_gradient_of_the_network_that_is_left() -> None:
    """Of one example a step is along the same gradient as without clipping, and as long as it may be."""
    X, y = batch(1)
    moved = []
    for limit in (None, 0.01):
        net = network(dtype="float64", dropout=[0.2, 0.5, 0.5])
        before = net.theta.copy()
        net.train_step(X, y, SGD(1.0), clip_per_example=limit)
        moved.append(before - net.theta)
    length = np.linalg.norm(moved[0])
    assert length > 0.1 and (moved[0] == 0).any()
    np.testing.assert_allclose(moved[1], moved[0] * (0.01 / length), rtol=1e-9, atol=1e-15)


@pytest.mark.parametrize("bad", [0, -1, np.nan, np.inf, "1"])
def test_limits_that_are_none(bad: Any) -> None:
    net, (X, y) = network(), batch()
    before = net.theta.copy()
    for call in (
        lambda: net.gradient(X, y, clip_per_example=bad),
        lambda: net.train_step(X, y, SGD(0.1), clip_per_example=bad),
        lambda: net.fit(X, y, epochs=1, clip_per_example=bad),
    ):
        with pytest.raises(ValueError, match="clip_per_example is .*; expected a finite positive number"):  # noqa: RUF043
            call()
    assert same(net.theta, before)


@pytest.mark.parametrize(("dtype_", "bad"), [("float32", 1e300), ("float32", 1e-300), ("float64", 1e-310), ("float32", 3.5e38)])
def test_limits_that_the_dtype_cannot_hold(dtype_: str, bad: float) -> None:
    net, (X, y) = network(dtype=dtype_), batch()
    before = net.theta.copy()
    for call in (
        lambda: net.gradient(X, y, clip_per_example=bad),
        lambda: net.train_step(X, y, SGD(0.1), clip_per_example=bad),
        lambda: net.fit(X, y, epochs=1, clip_per_example=bad),
    ):
        with pytest.raises(ValueError, match=rf"clip_per_example is {bad:g}; in {dtype_} expected .* to ".replace("+", r"\+")):
            call()
    assert same(net.theta, before) and net.epochs_trained == 0
    assert np.isfinite(net.gradient(X, y, clip_per_example=1e37)[1]).all()


def test_a_gradient_whose_square_is_infinite_is_left_out() -> None:
    """In float32; in float64 it is made as long as it may be."""
    X, y = np.array([[1.0, 2.0], [1e25, 0.0]]), np.array([0.0, 0.0])
    for dtype, kept in (("float32", 0), ("float64", 1)):
        net = MLP([2, 1], loss="squared_error", dtype=dtype, reduction="sum")
        net.weights[0] = np.ones((2, 1))
        both, first = (np.linalg.norm(net.gradient(X[:n], y[:n], clip_per_example=1.0)[1]) for n in (2, 1))
        assert first == pytest.approx(1) and (both > 1.2) == bool(kept)


# -- the noise of the gradient ----------------------------------------------------------------------------------------------


def test_noise_scale(dtype: np.dtype) -> None:
    net, (X, y) = network(dtype=dtype), batch(2100)
    G = np.concatenate([net.per_example_gradients(X[s : s + 300], y[s : s + 300]) for s in range(0, 2100, 300)]).astype("f8")
    trace = np.cov(G.T).trace()
    squared = (G.mean(axis=0) ** 2).sum() - trace / 2100
    noise = net.gradient_noise_scale(X, y)
    tight = 1e-5 if dtype == "f4" else 1e-12
    np.testing.assert_allclose([noise.trace, noise.squared_gradient], [trace, squared], rtol=tight)
    assert noise.examples == pytest.approx(trace / squared, rel=tight)


def test_noise_scale_at_its_ends() -> None:
    net = MLP([1, 1], activation="identity", loss="squared_error", dtype="float64")
    net.theta = [0.0, 0.0]
    same_twice = net.gradient_noise_scale([[1.0], [1.0]], [1.0, 1.0])
    assert same_twice == pytest.approx((0, 0, 2), abs=1e-14)
    assert net.gradient_noise_scale([[1.0], [1.0]], [1.0, -1.0]).examples == np.inf  # gradients that cancel
    with pytest.raises(ValueError, match="X has 1 row; expected two or more"):
        net.gradient_noise_scale([[1.0]], [1.0])


# -- what does not fit ------------------------------------------------------------------------------------------------------


def test_what_does_not_fit_is_refused_before_any_work() -> None:
    net = MLP([784, 2500, 2000, 1500, 1000, 500, 10])
    X = np.lib.stride_tricks.as_strided(np.zeros(1, "f4"), (10_000, 784), (0, 0))
    y = np.zeros(10_000, int)
    wanted = 10_000 * net.theta.size * 4 / 1e9
    with pytest.raises(MemoryError, match=f"would need {wanted:.0f} GB; .* take per_example_norms or per_example_gram"):
        net.per_example_gradients(X, y)
    X = np.lib.stride_tricks.as_strided(np.zeros(1, "f4"), (100_000, 784), (0, 0))
    with pytest.raises(MemoryError, match=r"100,000 examples with each other would need 240 GB"):
        net.per_example_gram(X, np.zeros(100_000, int))
