"""The gradients are true: against directional derivatives, the textbook's algorithm, and exact integers.

The textbook below works from z alone, every f' a formula of z and every loss a formula of a, so that it shares neither the
saved tensors nor the shortcuts (a - y of softmax and sigmoid) of the library.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

import bpgpu

Array = np.ndarray[Any, Any]

# -- tolerances, each with its reason -------------------------------------------------------------------------------------

# Two float64 evaluations of one formula, sums in different order, a few layers deep: some hundred roundings of 1.1e-16.
SAME_FORMULA = 3e-14  # of a tensor's largest number
# The textbook takes f' from z where the library takes it from a, and a - y from products of its own: where a saturates
# (1 - a^2, a (1 - a)) an ulp of a is all that is left of it, so errors are measured against what came before f'; and the
# textbook itself divides by a (1 - a) for binary cross-entropy.
SATURATION = 2e-13
# Five-point difference, step h: truncation h^4 |L'''''| / 30, at h = 1e-3 about 1e-12 times a fifth derivative that may be
# some hundred for four layers; rounding 1e-16 |L| / h = 1e-13 |L|.
DIFFERENCE, STEP = 2e-10, 1e-3
# float32: err <= 2 err of plain NumPy float32 + FLOOR ulp of the tensor's largest number.  2: NumPy sums pairwise and in
# blocks, the contract in chunks, either may be the luckier one.  The floor: a tensor of one or two numbers may be hit
# exactly by one of them by luck, and the losses are a plain sum, which NumPy adds pairwise, the contract 256 at a time; 4 ulp
# are what 2-ulp functions or such a sum make of it.  After f' an ulp is that of the largest number before it (saturation).
TIMES, FLOOR = 2.0, 4.0

# -- the textbook ---------------------------------------------------------------------------------------------------------

erf = np.vectorize(math.erf, otypes=[float])
LEAK, SELU, ALPHA, LECUN = 0.01, 1.0507009873554805, 1.6732632423543772, 1.7159


def logistic(z: Array) -> Array:
    return 1 / (1 + np.exp(-z))


def phi(z: Array) -> Array:
    return ((1 + erf(z / math.sqrt(2))) / 2).astype(z.dtype)


def density(z: Array) -> Array:
    return np.exp(-z * z / 2) / math.sqrt(2 * math.pi)


Function = Callable[[Array], Array]
F: dict[str, tuple[Function, Function]] = {  # f(z), f'(z)
    "identity": (lambda z: z, lambda z: z * 0 + 1),
    "sigmoid": (logistic, lambda z: np.exp(-abs(z)) / (1 + np.exp(-abs(z))) ** 2),
    "tanh": (np.tanh, lambda z: 1 / np.cosh(z) ** 2),
    "scaled_tanh": (lambda z: LECUN * np.tanh(2 * z / 3), lambda z: LECUN * 2 / 3 / np.cosh(2 * z / 3) ** 2),
    "relu": (lambda z: z * (z > 0), lambda z: (z > 0).astype(z.dtype)),
    "leaky_relu": (lambda z: np.where(z > 0, z, LEAK * z), lambda z: np.where(z > 0, 1, LEAK).astype(z.dtype)),
    "elu": (lambda z: np.where(z > 0, z, np.exp(z) - 1), lambda z: np.where(z > 0, 1, np.exp(z))),
    "selu": (
        lambda z: SELU * np.where(z > 0, z, ALPHA * (np.exp(z) - 1)),
        lambda z: SELU * np.where(z > 0, 1, ALPHA * np.exp(z)),
    ),
    "gelu": (lambda z: z * phi(z), lambda z: phi(z) + z * density(z)),
    "silu": (lambda z: z * logistic(z), lambda z: logistic(z) + z * logistic(z) * logistic(-z)),
    "softplus": (lambda z: np.log(1 + np.exp(z)), logistic),
}  # fmt: skip

# C^n of a row of outputs and targets, dC/da
LOSS: dict[str, tuple[Callable[[Array, Array], Array], Callable[[Array, Array], Array]]] = {
    "squared_error": (lambda a, y: ((a - y) ** 2).sum(1) / 2, lambda a, y: a - y),
    "absolute_error": (lambda a, y: abs(a - y).sum(1), lambda a, y: np.sign(a - y)),
    "huber": (
        lambda a, y: np.where(abs(a - y) <= 1, (a - y) ** 2 / 2, abs(a - y) - 0.5).sum(1),
        lambda a, y: np.clip(a - y, -1, 1),
    ),
    "binary_cross_entropy": (
        lambda a, y: -(y * np.log(a) + (1 - y) * np.log(1 - a)).sum(1),
        lambda a, y: (a - y) / (a * (1 - a)),
    ),
    "cross_entropy": (lambda a, y: -(y * np.log(a)).sum(1), lambda a, y: -y / a),
}


@dataclass
class Textbook:
    loss: float
    a: list[Array]
    z: list[Array]
    delta: list[Array]
    dW: list[Array]
    db: list[Array]
    before: list[float]  # of each delta: the largest number before the factor f', or of both terms of a - y


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def textbook(
    W: list[Array], b: list[Array], f: list[str], loss: str, X: Array, y: Array, weight: Array | None, reduction: str
) -> Textbook:
    """f: the activations of every layer, the output's included.  Works in the dtype of its arguments."""
    a, z = [X], []
    for l, name in enumerate(f):
        z.append(a[l] @ W[l] + b[l])
        a.append(softmax(z[l]) if name == "softmax" else F[name][0](z[l]))
    if y.ndim == 1:
        y = np.eye(a[-1].shape[1], dtype=X.dtype)[y]
    w = np.ones(len(X), X.dtype) if weight is None else weight
    w = (w / (w.sum() if reduction == "mean" else 1)).astype(X.dtype)
    C, dC = LOSS[loss]
    dA = w[:, None] * dC(a[-1], y)
    delta = [a[-1] * (dA - (dA * a[-1]).sum(1, keepdims=True)) if f[-1] == "softmax" else dA * F[f[-1]][1](z[-1])]
    before = [float(w.max()) if loss.endswith("cross_entropy") else float(abs(dA).max())]
    for l in range(len(W) - 1, 0, -1):
        flow = delta[0] @ W[l].T
        delta.insert(0, flow * F[f[l - 1]][1](z[l - 1]))
        before.insert(0, float(abs(flow).max()))
    dW, db = [x.T @ d for x, d in zip(a, delta, strict=False)], [d.sum(0) for d in delta]
    return Textbook(float((w * C(a[-1], y)).sum()), a, z, delta, dW, db, before)


def of_net(
    net: bpgpu.MLP, X: Array, y: Array, weight: Array | None = None, *, dtype: Any = "f8", theta: Any = None
) -> Textbook:
    """The textbook on a network's own numbers (or on another theta), in another dtype."""
    W, b = net.views(net.theta if theta is None else theta)
    return textbook(
        [w.astype(dtype) for w in W], [x.astype(dtype) for x in b], [*net.activations, net.output_activation], net.loss,
        X.astype(dtype), y if y.ndim == 1 else y.astype(dtype), None if weight is None else weight.astype(dtype), net.reduction,
    )  # fmt: skip


# -- cases ----------------------------------------------------------------------------------------------------------------

OUTPUTS = [
    ("cross_entropy", "softmax"),
    ("binary_cross_entropy", "sigmoid"),
    *((loss, f) for loss in ("squared_error", "absolute_error", "huber") for f in bpgpu.ACTIVATIONS),
]
ROWS_AND_LAYERS = [
    (1, [3, 4, 2]),
    (5, [1, 1, 2]),
    (7, [6, 2]),
    (3, [4, 5, 3, 7, 2, 3]),
    (2, [5, 67, 3]),
    (33, [17, 19, 16, 10]),
]


def targets(rng: np.random.Generator, net: bpgpu.MLP, n: int, labels: bool) -> Array:
    outputs = net.layers[-1]
    if net.loss == "cross_entropy":
        return rng.integers(0, outputs, n) if labels else rng.dirichlet(np.ones(outputs), n)
    return rng.uniform(0, 1, (n, outputs)) if net.loss == "binary_cross_entropy" else rng.normal(0, 1.5, (n, outputs))


@dataclass
class Case:
    net: bpgpu.MLP
    X: Array
    y: Array
    weight: Array | None


def make(
    rng: np.random.Generator, activation: str | list[str], output: tuple[str, str], shape: tuple[int, list[int]],
    *, labels: bool = True, weighted: bool = False, reduction: str = "mean", dtype: str = "float64", backend: str = "cpu",
) -> Case:  # fmt: skip
    n, layers = shape
    net = bpgpu.MLP(
        layers, activation=activation, loss=output[0], output_activation=output[1], reduction=reduction, dtype=dtype,
        backend=backend, seed=int(rng.integers(1 << 30)),
    )  # fmt: skip
    for b in net.biases:
        b[:] = rng.normal(0, 0.5, b.shape)
    X, y = rng.normal(0, 1, (n, layers[0])).astype(dtype), targets(rng, net, n, labels)
    weight = rng.uniform(0.1, 2, n).astype(dtype) if weighted else None
    return Case(net, X, y if y.ndim == 1 else y.astype(dtype), weight)


def kinks(case: Case, theta: Array) -> Array:
    """On which side of every kink the network is: z of each unit, and a - y."""
    t = of_net(case.net, case.X, case.y, case.weight, theta=theta)
    sides = [z.ravel() > 0 for z in t.z]
    if case.y.ndim == 2:
        d = (t.a[-1] - case.y).ravel()
        sides += [d > 0, abs(d) > 1]
    return np.concatenate(sides)


def check_directions(case: Case, rng: np.random.Generator, directions: int = 2) -> None:
    """g . v of the library's gradient against a five-point difference of the library's loss, h v apart."""
    net, home = case.net, case.net.theta.copy()
    _, gradient = net.gradient(case.X, case.y, sample_weight=case.weight)

    def loss(theta: Array) -> float:
        net.theta[:] = theta
        return net.gradient(case.X, case.y, sample_weight=case.weight)[0]

    step = STEP
    for attempt in range(60):
        v = rng.standard_normal(home.size)
        v /= np.linalg.norm(v)
        step = STEP if attempt < 30 else STEP / 30
        points = [home + k * step * v for k in (-2, -1, 1, 2)]
        if any(not np.array_equal(kinks(case, p), kinks(case, home)) for p in points):
            continue
        far_left, left, right, far_right = map(loss, points)
        slope = (8 * (right - left) - (far_right - far_left)) / (12 * step)
        net.theta[:] = home
        size = max(1.0, float(np.linalg.norm(gradient)), abs(loss(home)))
        assert abs(slope - gradient @ v) <= DIFFERENCE * size * STEP / step
        directions -= 1
        if not directions:
            return
    raise AssertionError("no direction without a kink: choose other numbers")


def assert_near(got: Any, truth: Any, tolerance: float, what: str, size: float | None = None) -> None:
    got, truth = np.asarray(got, "f8"), np.asarray(truth, "f8")
    assert got.shape == truth.shape
    size = float(abs(truth).max()) if size is None else size
    worst = float(abs(got - truth).max())
    assert worst <= tolerance * size, f"{what}: off by {worst:.3g}, its size is {size:.3g}"


def check_layers(case: Case, truth: Textbook) -> None:
    """a, z, delta, dW, db and the loss, layer by layer."""
    net = case.net
    passes = net.forward(case.X)
    back = net.backward(passes, case.y, sample_weight=case.weight)
    assert_near(back.loss, truth.loss, SAME_FORMULA, "loss", max(1.0, abs(truth.loss)))
    for l in range(len(net.weights)):
        assert_near(passes.z(l), truth.z[l], SAME_FORMULA, f"z({l})")
        assert_near(passes.a[l + 1], truth.a[l + 1], SAME_FORMULA, f"a[{l + 1}]", max(1e-3, float(abs(truth.a[l + 1]).max())))
        size = max(truth.before[l], float(abs(truth.delta[l]).max()))
        assert_near(back.delta[l], truth.delta[l], SATURATION, f"delta[{l}]", size)
        assert_near(back.dW[l], truth.dW[l], SATURATION, f"dW[{l}]", size * float(abs(truth.a[l]).max()) * len(case.X))
        assert_near(back.db[l], truth.db[l], SATURATION, f"db[{l}]", size * len(case.X))
    assert np.shares_memory(back.gradient, back.dW[0]) and np.shares_memory(back.gradient, back.db[-1])
    flat = np.concatenate([*(w.ravel() for w in back.dW), *back.db])
    assert np.array_equal(flat, back.gradient), "the gradient is laid out as theta"


def names(value: Any) -> str:
    return "-".join(map(str, value)) if isinstance(value, (tuple, list)) else str(value)


# -- float64 against truth ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("output", OUTPUTS, ids=names)
@pytest.mark.parametrize("activation", bpgpu.ACTIVATIONS)
def test_every_activation_and_loss(activation: str, output: tuple[str, str], rng: np.random.Generator) -> None:
    case = make(rng, activation, output, (5, [4, 6, 3, 2]), weighted=True)
    check_layers(case, of_net(case.net, case.X, case.y, case.weight))
    check_directions(case, rng)


@pytest.mark.parametrize("shape", ROWS_AND_LAYERS, ids=names)
@pytest.mark.parametrize("output", [*OUTPUTS[:2], ("squared_error", "sigmoid"), ("huber", "identity")], ids=names)
@pytest.mark.parametrize(
    ("labels", "weighted", "reduction"),
    [(True, False, "mean"), (False, True, "mean"), (True, True, "sum"), (False, False, "sum")],
)
def test_shapes_targets_weights_reductions(
    shape: tuple[int, list[int]],
    output: tuple[str, str],
    labels: bool,
    weighted: bool,
    reduction: str,
    rng: np.random.Generator,
) -> None:
    hidden = [("tanh", "gelu", "elu", "silu")[l % 4] for l in range(len(shape[1]) - 2)]
    case = make(rng, hidden, output, shape, labels=labels, weighted=weighted, reduction=reduction)
    check_layers(case, of_net(case.net, case.X, case.y, case.weight))
    check_directions(case, rng)


@pytest.mark.parametrize(
    "output", [("binary_cross_entropy", "sigmoid"), ("squared_error", "tanh"), ("absolute_error", "identity")]
)
def test_one_output(output: tuple[str, str], rng: np.random.Generator) -> None:
    case = make(rng, "sigmoid", output, (6, [3, 5, 1]))
    check_layers(case, of_net(case.net, case.X, case.y))
    check_directions(case, rng)
    passes = case.net.forward(case.X)
    column, flat = case.net.backward(passes, case.y), case.net.backward(passes, case.y[:, 0])
    assert np.array_equal(column.gradient, flat.gradient) and column.loss == flat.loss


@pytest.mark.parametrize("activation", bpgpu.ACTIVATIONS)
def test_over_several_chunks(activation: str, rng: np.random.Generator) -> None:
    """More than 256 examples, inputs, and units."""
    case = make(rng, activation, ("cross_entropy", "softmax"), (301, [270, 259, 7]), weighted=True)
    check_layers(case, of_net(case.net, case.X, case.y, case.weight))


@pytest.mark.parametrize("output", OUTPUTS, ids=names)
@pytest.mark.parametrize("labels", [True, False])
def test_reference_backend(output: tuple[str, str], labels: bool, rng: np.random.Generator) -> None:
    """backend="numpy" against the textbook, and the kernels against backend="numpy"."""
    hidden = list(rng.permutation(bpgpu.ACTIVATIONS)[:2])
    case = make(rng, hidden, output, (9, [5, 8, 6, 4]), labels=labels, weighted=True, backend="numpy")
    check_layers(case, of_net(case.net, case.X, case.y, case.weight))
    twin = bpgpu.MLP(
        case.net.layers, activation=hidden, loss=output[0], output_activation=output[1], dtype="float64", backend="cpu"
    )
    twin.theta[:] = case.net.theta
    theirs = case.net.backward(case.net.forward(case.X), case.y, sample_weight=case.weight)
    ours = twin.backward(twin.forward(case.X), case.y, sample_weight=case.weight)
    assert_near(ours.loss, theirs.loss, SAME_FORMULA, "loss", max(1.0, theirs.loss))
    for l in range(3):
        assert_near(ours.delta[l], theirs.delta[l], SAME_FORMULA, f"delta[{l}]")
        assert_near(ours.dW[l], theirs.dW[l], SAME_FORMULA, f"dW[{l}]")
        assert_near(ours.db[l], theirs.db[l], SAME_FORMULA, f"db[{l}]", float(abs(theirs.delta[l]).sum(0).max()))


@pytest.mark.parametrize("optimizer", [(0.1, 0.0, False), (0.1, 0.9, False), (0.1, 0.9, True)], ids=names)
@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_a_step_is_descent_along_the_true_gradient(
    optimizer: tuple[float, float, bool], backend: str, rng: np.random.Generator
) -> None:
    """Five steps by the docstring of SGD, with gradients of the textbook; weight decay is for the weights alone."""
    lr, mu, nesterov = optimizer
    case = make(rng, "tanh", ("cross_entropy", "softmax"), (12, [5, 7, 3]), weighted=True, backend=backend)
    sgd = bpgpu.SGD(lr, mu, nesterov=nesterov, weight_decay=0.01)
    w, v = case.net.theta.copy(), np.zeros(case.net.theta.size)
    decay = np.where(np.arange(w.size) < sum(x.size for x in case.net.weights), 0.01, 0)
    for _ in range(5):
        t = of_net(case.net, case.X, case.y, case.weight, theta=w)
        g = np.concatenate([*(x.ravel() for x in t.dW), *t.db]) + decay * w
        v = mu * v + g
        w = w - lr * (g + mu * v if nesterov else v)
        assert_near(case.net.train_step(case.X, case.y, sgd, sample_weight=case.weight), t.loss, SAME_FORMULA, "loss", 1.0)
    assert_near(case.net.theta, w, SAME_FORMULA, "theta")


# -- float32 against plain NumPy float32 ----------------------------------------------------------------------------------


def check_float32(case: Case) -> None:
    truth = of_net(case.net, case.X, case.y, case.weight)
    plain = of_net(case.net, case.X, case.y, case.weight, dtype="f4")
    passes = case.net.forward(case.X)
    back = case.net.backward(passes, case.y, sample_weight=case.weight)
    flow, largest = truth.before, [float(abs(a).max()) for a in truth.a]
    for l in range(len(case.net.weights)):
        for what, got, usual, true, size in (
            ("a", passes.a[l + 1], plain.a[l + 1], truth.a[l + 1], largest[l + 1]),
            ("z", passes.z(l), plain.z[l], truth.z[l], float(abs(truth.z[l]).max())),
            ("delta", back.delta[l], plain.delta[l], truth.delta[l], flow[l]),
            ("dW", back.dW[l], plain.dW[l], truth.dW[l], max(flow[l] * largest[l], float(abs(truth.dW[l]).max()))),
            ("db", back.db[l], plain.db[l], truth.db[l], max(flow[l], float(abs(truth.db[l]).max()))),
        ):
            error, usually = float(abs(got - true).max()), float(abs(usual - true).max())
            budget = TIMES * usually + FLOOR * np.finfo("f4").eps * size
            assert error <= budget, f"{what}[{l}] is off by {error:.3g}, NumPy float32 by {usually:.3g}"
    error, usually = abs(back.loss - truth.loss), abs(plain.loss - truth.loss)
    assert error <= TIMES * usually + FLOOR * np.finfo("f4").eps * max(1.0, truth.loss), "loss"  # 1: a_label near 1


@pytest.mark.parametrize("output", [*OUTPUTS[:2], ("squared_error", "identity"), ("huber", "identity")], ids=names)
@pytest.mark.parametrize("activation", bpgpu.ACTIVATIONS)
@pytest.mark.parametrize("shape", [(1, [3, 1, 2]), (64, [97, 65, 33, 10]), (300, [300, 300, 10])], ids=names)
def test_float32_is_as_good_as_numpy(
    activation: str, output: tuple[str, str], shape: tuple[int, list[int]], rng: np.random.Generator
) -> None:
    check_float32(make(rng, activation, output, shape, weighted=True, dtype="float32"))


def test_float32_deep_and_wide(rng: np.random.Generator) -> None:
    check_float32(
        make(rng, ["relu", "tanh", "gelu", "silu", "softplus"], OUTPUTS[0], (50, [20, *[40] * 5, 5]), dtype="float32")
    )
    check_float32(make(rng, "relu", OUTPUTS[0], (64, [784, 512, 10]), dtype="float32"))


# -- exactness ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "identity"])
@pytest.mark.parametrize("shape", [(1, [1, 1, 1]), (5, [7, 3, 2]), (33, [257, 19, 3]), (600, [40, 33, 4])], ids=names)
def test_integers_are_exact(activation: str, shape: tuple[int, list[int]], dtype: np.dtype, rng: np.random.Generator) -> None:
    """Every partial sum is an integer below 2^24, so that any correct implementation has these bits."""
    n, layers = shape
    net = bpgpu.MLP(layers, activation=activation, loss="squared_error", reduction="sum", dtype=dtype, backend="cpu")
    net.theta[:] = rng.integers(-1, 2, net.theta.size)
    X = rng.integers(-2, 3, (n, layers[0])) * (rng.random((n, layers[0])) < 0.2)
    y = rng.integers(-3, 4, (n, layers[-1]))
    W, b = ([p.astype(np.int64) for p in parts] for parts in (net.weights, net.biases))
    z = X @ W[0] + b[0]
    a = np.maximum(z, 0) if activation == "relu" else z
    out = a @ W[1] + b[1]
    delta = out - y
    below = (delta @ W[1].T) * (z > 0 if activation == "relu" else 1)
    dW, db = [X.T @ below, a.T @ delta], [below.sum(0), delta.sum(0)]
    passes = net.forward(X)
    back = net.backward(passes, y)
    assert max(abs(x).max() for x in (*dW, *db, (delta**2).sum())) < 2**24, "the numbers of this test are too large"
    for got, exact in zip(
        (passes.a[1], passes.a[2], back.delta[1], back.delta[0], *back.dW, *back.db),
        (a, out, delta, below, *dW, *db),
        strict=True,
    ):
        assert np.array_equal(got, exact) and got.dtype == dtype
    assert back.loss == (delta**2).sum() / 2
    step = net.theta - 2.0**-10 * back.gradient
    if dtype == np.float64:  # in float32 the difference itself would round
        net.train_step(X, y, bpgpu.SGD(2.0**-10))
        assert np.array_equal(net.theta, step)


def test_gradient_at_a_kink_is_the_slope_from_the_left(dtype: np.dtype) -> None:
    for name, slope in (("relu", 0.0), ("leaky_relu", 0.01), ("elu", 1.0), ("selu", SELU * ALPHA)):
        net = bpgpu.MLP([1, 1, 1], activation=name, loss="squared_error", dtype=dtype)
        net.theta[:] = [1, 1, 0, 0]
        back = net.backward(net.forward([[0.0]]), [[-1.0]])
        assert back.delta[0][0, 0] == pytest.approx(slope, rel=4 * float(np.finfo(dtype).eps), abs=0)
    for loss in ("absolute_error", "huber"):  # at a = y nothing is to be mended
        net = bpgpu.MLP([1, 1], loss=loss, dtype=dtype)
        net.theta[:] = [1, 0]
        loss_at, gradient = net.gradient([[2.0]], [[2.0]])
        assert loss_at == 0 and not gradient.any()
