"""The reversed network: adjoint to the forward one, linear, and the backward pass when it starts from the loss."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import bpgpu
from bpgpu import MLP
from bpgpu.cuda import CUDABackend
from tests.test_cuda import same

Array = np.ndarray[Any, Any]
SMOOTH = [f for f in bpgpu.ACTIVATIONS if f not in ("relu", "leaky_relu", "elu", "selu")]


def network(layers: list[int], f: Any = "tanh", output: str = "softmax", **options: Any) -> MLP:
    loss = {"softmax": "cross_entropy", "sigmoid": "binary_cross_entropy"}.get(output, "squared_error")
    return MLP(layers, activation=f, loss=loss, output_activation=output, **{"dtype": "float64", "seed": 1} | options)


@settings(max_examples=60)
@given(
    layers=st.lists(st.integers(1, 9), min_size=2, max_size=5).filter(lambda sizes: sizes[-1] > 1),
    n=st.integers(1, 6),
    f=st.sampled_from(["tanh", "relu", "gelu"]),
    output=st.sampled_from(["softmax", "sigmoid", "identity", "silu"]),
    seed=st.integers(0, 2**32),
)
def test_adjoint(layers: list[int], n: int, f: str, output: str, seed: int) -> None:
    """<J v, u> = <v, J^T u>, whatever v and u are."""
    rng = np.random.default_rng(seed)
    net = network(layers, f, output)
    net.theta += 0.3 * rng.standard_normal(net.theta.shape)
    rev = net.reverse(net.forward(rng.standard_normal((n, layers[0]))))
    v, u = rng.standard_normal((n, layers[0])), rng.standard_normal((n, layers[-1]))
    Jv, JTu = rev.tangent(v), rev(u).dX
    assert abs((Jv * u).sum() - (v * JTu).sum()) <= 1e-14 * (paths(rev, abs(v)) * abs(u)).sum()


def paths(rev: bpgpu.Reverse, change: Array) -> Array:
    """J change, each path through the network with its absolute value: what rounding errors are to be measured by, as the
    paths themselves may cancel."""
    gains = [*map(abs, rev.gains), None]  # the last is that of softmax
    for W, gain in zip(rev.net.weights, gains, strict=False):
        change = change @ abs(W) * (1 if gain is None else gain)
    if rev.net.output_activation == "softmax":
        y = rev.passes.a[-1]
        change = y * (change + (change * y).sum(axis=1, keepdims=True))
    return change


@pytest.mark.parametrize("output", ["softmax", "sigmoid", "identity", "gelu"])
@pytest.mark.parametrize("f", SMOOTH)
def test_tangent_is_the_derivative_along_a_direction(f: str, output: str, rng: np.random.Generator) -> None:
    """Against a five-point difference of the outputs; with the adjoint identity that makes dC/dx true as well."""
    net = network([5, 7, 6, 4], f, output)
    X, v, h = rng.standard_normal((3, 5)), rng.standard_normal((3, 5)), 1e-3
    y = {k: net.outputs(X + k * h * v) for k in (-2, -1, 1, 2)}
    difference = (y[-2] - 8 * y[-1] + 8 * y[1] - y[2]) / (12 * h)
    np.testing.assert_allclose(net.reverse(net.forward(X)).tangent(v), difference, rtol=1e-8, atol=1e-9)


def test_from_the_loss_it_is_the_backward_pass(rng: np.random.Generator) -> None:
    net = network([5, 7, 6, 4], "tanh", "identity")
    passes, y = net.forward(rng.standard_normal((3, 5))), rng.standard_normal((3, 4))
    back, rev = net.backward(passes, y), net.reverse(passes)
    reversed_ = rev((passes.a[-1] - y) / 3)
    for delta, expected in zip(reversed_.delta, back.delta, strict=True):
        np.testing.assert_allclose(delta, expected, rtol=1e-13, atol=1e-16)
    np.testing.assert_allclose(reversed_.dX, back.delta[0] @ net.weights[0].T, rtol=1e-12, atol=1e-16)
    for delta, expected in zip(rev.deltas(back.delta[-1]), back.delta, strict=True):
        assert same(delta, expected)


def test_from_the_loss_through_softmax(rng: np.random.Generator) -> None:
    """dC/da = -y/a of the cross-entropy, sent through diag(a) - a a^T, is a - y."""
    net = network([5, 7, 4])
    passes, y = net.forward(rng.standard_normal((6, 5))), rng.integers(0, 4, 6)
    back, target = net.backward(passes, y), np.eye(4)[y]
    for delta, expected in zip(net.reverse(passes)(-target / passes.a[-1] / 6).delta, back.delta, strict=True):
        np.testing.assert_allclose(delta, expected, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
@pytest.mark.parametrize("f", bpgpu.ACTIVATIONS)
def test_gains_are_the_slopes_and_the_factors_of_each_layer(f: str, backend: str, rng: np.random.Generator) -> None:
    net = network([5, 7, 6, 4], [f, "tanh"], f, backend=backend)
    passes = net.forward(rng.standard_normal((3, 5)))
    rev = net.reverse(passes)
    assert [g.shape for g in rev.gains] == [(3, 7), (3, 6), (3, 4)]
    cpu = bpgpu.get_backend("cpu")
    for z, gain in ((passes.z(0), rev.gains[0]), (passes.z(2), rev.gains[2])):
        h = 1e-6
        up, down = (np.asarray(cpu.activate(np.ascontiguousarray(z + s * h), f)) for s in (1, -1))
        np.testing.assert_allclose(gain, (up - down) / (2 * h), atol=1e-7)  # no z of this test is at a kink
    seed = rng.standard_normal((3, 4))
    delta = rev(seed).delta
    np.testing.assert_allclose(delta[2], seed * rev.gains[2], rtol=1e-14)
    for l in (1, 0):
        np.testing.assert_allclose(delta[l], (delta[l + 1] @ net.weights[l + 1].T) * rev.gains[l], rtol=1e-12, atol=1e-14)


def test_softmax_has_no_gain_of_single_units() -> None:
    net = network([3, 4, 2])
    assert len(net.reverse(net.forward(np.ones((1, 3)))).gains) == 1


def test_it_is_linear_exactly_so_for_powers_of_two(rng: np.random.Generator) -> None:
    net = network([5, 7, 4], "relu", dtype="float32")
    rev = net.reverse(net.forward(rng.standard_normal((3, 5))))
    seed = rng.standard_normal((3, 4)).astype("f4")
    one, four = rev(seed), rev(4 * seed)
    assert same(4 * one.dX, four.dX) and all(same(4 * a, b) for a, b in zip(one.delta, four.delta, strict=True))


@pytest.mark.parametrize("output", ["softmax", "sigmoid"])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_same_bits_on_both_backends(output: str, dtype: str, rng: np.random.Generator, exact_cuda: CUDABackend) -> None:
    X, v, u = rng.standard_normal((9, 5)), rng.standard_normal((9, 5)), rng.standard_normal((9, 3))
    results = []
    for backend in ("cpu", exact_cuda):
        net = network([5, 19, 7, 3], ["gelu", "tanh"], output, backend=backend, dtype=dtype)
        rev = net.reverse(net.forward(X))
        results.append([*rev.gains, *rev(u).delta, rev(u).dX, rev.tangent(v)])
    assert all(same(a, b) for a, b in zip(*results, strict=True))


def test_bad_seeds_are_refused() -> None:
    net = network([3, 4, 2])
    rev = net.reverse(net.forward(np.ones((5, 3))))
    with pytest.raises(ValueError, match=r"seed has 3 columns .* expected 2"):
        rev(np.ones((5, 3)))
    with pytest.raises(ValueError, match="seed has 4 rows; expected 5"):
        rev(np.ones((4, 2)))
    with pytest.raises(ValueError, match=r"dX\[0, 1\] is nan"):
        rev.tangent(np.array([[0, np.nan, 0]] * 5))


def test_a_forward_pass_of_another_network_is_refused() -> None:
    net, other, X, y = network([3, 4, 2]), network([3, 4, 2]), np.ones((5, 3)), np.zeros(5, int)
    passes = other.forward(X)
    for call in (lambda: net.reverse(passes), lambda: net.backward(passes, y)):
        with pytest.raises(ValueError, match="passes is a forward pass of another network"):
            call()
    for wrong in (X, None):
        with pytest.raises(TypeError, match=r"passes is a (ndarray|NoneType); expected a forward pass: passes = net\.forward"):
            net.reverse(wrong)  # type: ignore[arg-type]
    assert passes != other.forward(X) and other.backward(passes, y) != other.backward(passes, y)  # two are two, and no error
