"""How accurate f, f', softmax and the losses are: errors in units in the last place (ulp), printed and bounded.

    python -m pytest tests/test_functions.py -s            prints the table
    python -m pytest tests/test_functions.py -s -m ""      and takes every one of the 2^32 float32 inputs for two functions

Everything goes through the public seam: f by backend.activate, f' by hidden_delta of a product that is exactly 1.  The truth
for float32 are float64 formulas that lose nothing, for float64 mpmath with 120 digits (without it: long double).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from conftest import cpu_backend

from bpgpu.backend import ACTIVATIONS

try:
    import mpmath
except ImportError:
    mpmath = None  # type: ignore[assignment]

Array = np.ndarray[Any, Any]
LECUN, SELU, ALPHA = 1.7159, 1.0507009873554805, 1.6732632423543772
SAVES_Z = ("gelu", "silu")  # f' is a function of z there, of a for the others
WIDE = np.float64 if np.finfo(np.longdouble).nmant < 60 else np.longdouble

# -- bounds in ulp of the true result (of the dtype's smallest subnormal, where the result is below) -----------------------
# One correctly rounded operation is 0.5; each further operation adds up to about 1 (a result near a power of two has
# a relative rounding twice that of the other end), and an exponential of the kernels is itself within about 1.
F_BOUND = {
    "identity": 0.0,
    "relu": 0.0,
    "leaky_relu": 2.0,  # the rounded constant 0.01, and one product
    "sigmoid": 3.0,  # exp, a sum, a quotient
    "tanh": 3.0,  # expm1, a sum, a quotient
    "scaled_tanh": 5.0,  # the rounded 2/3 and its product (x cosh^-2 <= tanh x: no amplification), tanh, the rounded 1.7159
    "elu": 2.0,  # expm1
    "selu": 5.0,  # expm1, two rounded constants and their products
    "gelu": 7.0,  # the normal distribution (exp, a fitted polynomial, quotient, near 0 one minus that) times z
    "silu": 4.0,  # sigmoid times z
    "softplus": 4.0,  # log1p(exp)
}
# Both are z times a number below 1 that may be subnormal (so within a few quanta, not ulp), and z is up to 104 (silu) or 14
# (gelu) there in float32, 745 or 39 in float64: |z| quanta more where the result itself is small.
SUBNORMAL_FACTOR = frozenset({"gelu", "silu"})
GAIN_BOUND = {
    "identity": 0.0,
    "relu": 0.0,
    "leaky_relu": 0.5,  # the constant
    "sigmoid": 1.5,  # two operations
    "tanh": 0.5,  # one fma
    "scaled_tanh": 4.0,  # * ulp of the largest f': 1.7159^2 - a^2 vanishes in saturation, its rounded constant does not
    "elu": 0.5,
    "selu": 2.0,  # * ulp of the largest f', the same
    "gelu": 7.0,  # * ulp of the larger of the two terms, whose sum passes through zero
    "silu": 4.0,  # the same, and 0.5 |z| for z > 0: 1 - s rounds where s is near 1
    "softplus": 2.0,  # expm1
}

# -- inputs ---------------------------------------------------------------------------------------------------------------


def stratified(dtype: Any, each: int, seed: int = 0) -> Array:
    """Every exponent with both signs, `each` numbers of it, the ranges where the functions bend, and the edges."""
    rng, info = np.random.default_rng(seed), np.finfo(dtype)
    words = np.dtype(f"u{info.dtype.itemsize}").type
    exponents = np.arange(2 ** (info.bits - 1 - info.nmant) - 1, dtype=words)[:, None]  # the last one is inf and NaN
    if dtype == np.float64 and each < 8:
        exponents = exponents[::8]
    fractions = rng.integers(0, 2**info.nmant, (len(exponents), each), dtype=np.uint64).astype(words)
    fractions[:, 0], fractions[:, -1] = 0, 2**info.nmant - 1
    bits = ((exponents << words(info.nmant)) | fractions).ravel()
    spans = [rng.uniform(0, top, 40 * each) for top in (1e-3, 1, 4, 15, 20, 40, 110, 760)]
    thresholds = [
        0.5 * math.log(2),
        math.log(2),
        1,
        9,
        10,
        14,
        17,
        18,
        20,
        37,
        38.5,
        40,
        87.3,
        88.72,
        89,
        103.9,
        104,
        708,
        709.8,
    ]
    near = [t * (1 + k * info.eps) for t in (*thresholds, 710, 744, 745.2, 746) for k in range(-3, 4)]
    edges = [0, info.smallest_subnormal, info.tiny, info.max]
    x = np.concatenate([bits.view(dtype), np.concatenate([*spans, near, edges]).astype(dtype)])
    return np.concatenate([x, -x])


def in_blocks(x: Array) -> Array:
    return x.reshape(-1, 1) if x.size % 64 else x.reshape(-1, 64)


def f(name: str, x: Array) -> Array:
    return np.asarray(cpu_backend(2).activate(in_blocks(x), name)).ravel()


def gain(name: str, saved: Array) -> Array:
    """f' from what is saved: hidden_delta with dZ = W = 1."""
    x = in_blocks(saved)
    ones = np.ones((max(x.shape), 1), x.dtype)
    return np.asarray(cpu_backend(2).hidden_delta(ones[: len(x)], ones[: x.shape[1]], x, name)).ravel()


# -- truth ----------------------------------------------------------------------------------------------------------------

erfc = np.vectorize(math.erfc, otypes=[float])


def logistic(z: Array) -> Array:
    e = np.exp(-abs(z))
    return np.where(z < 0, e, 1) / (1 + e)


def density(z: Array) -> Array:
    return np.exp(-z * z / 2) / math.sqrt(2 * math.pi)


WIDER: dict[str, Callable[[Array], Array]] = {  # in a wider type
    "identity": lambda z: z,
    "relu": lambda z: np.maximum(z, 0),
    "leaky_relu": lambda z: np.where(z < 0, z / 100, z),
    "sigmoid": logistic,
    "tanh": np.tanh,
    "scaled_tanh": lambda z: z.dtype.type(17159) / 10000 * np.tanh(2 * z / 3),
    "elu": lambda z: np.where(z < 0, np.expm1(np.minimum(z, 0)), z),
    "selu": lambda z: SELU * np.where(z < 0, ALPHA * np.expm1(np.minimum(z, 0)), z),
    "gelu": lambda z: z * erfc(-np.clip(z, -50, 50) / math.sqrt(2)) / 2,
    "silu": lambda z: z * logistic(z),
    "softplus": lambda z: np.maximum(z, 0) + np.log1p(np.exp(-abs(z))),
}
WIDER_GAIN: dict[str, Callable[[Array], Array]] = {  # of what is saved
    "identity": lambda a: a * 0 + 1,
    "relu": lambda a: np.where(a > 0, 1.0, 0.0),
    "leaky_relu": lambda a: np.where(a > 0, 1, 1 / a.dtype.type(100)),
    "sigmoid": lambda a: a * (1 - a),
    "tanh": lambda a: (1 - a) * (1 + a),
    "scaled_tanh": lambda a: (17159 - 10000 * a) * (17159 + 10000 * a) / (a.dtype.type(15000) * 17159),
    "elu": lambda a: np.where(a > 0, 1, a + 1),
    "selu": lambda a: np.where(a > 0, SELU, a + a.dtype.type(SELU) * ALPHA),
    "gelu": lambda z: erfc(-np.clip(z, -50, 50) / math.sqrt(2)) / 2 + z * density(np.clip(z, -50, 50)),
    "silu": lambda z: logistic(z) + z * logistic(z) * logistic(-z),
    "softplus": lambda a: -np.expm1(-a),
}


def exact(name: str, x: float) -> Any:
    """f(x) by mpmath."""
    z = mpmath.mpf(max(x, -60.0) if name == "gelu" else x)  # below -60 Phi is 0 in any case, and mpmath overflows
    if name in ("identity", "relu", "leaky_relu", "elu", "selu"):
        below = {"identity": z, "relu": 0 * z, "leaky_relu": z / 100}.get(name)
        below = mpmath.expm1(z) if below is None and z < 0 else below
        value = z if z >= 0 else below * (mpmath.mpf(ALPHA) if name == "selu" else 1)
        return value * (mpmath.mpf(SELU) if name == "selu" else 1)
    if name in ("tanh", "scaled_tanh"):
        return mpmath.tanh(z) if name == "tanh" else mpmath.mpf(17159) / 10000 * mpmath.tanh(2 * z / 3)
    if name in ("sigmoid", "silu"):
        return (z if name == "silu" else 1) * (1 / (1 + mpmath.exp(-z)))
    return z * mpmath.ncdf(min(z, 60)) if name == "gelu" else mpmath.log1p(mpmath.exp(z))


def exact_gain(name: str, x: float) -> Any:
    """f' by mpmath, of what is saved."""
    s = mpmath.mpf(x)
    if name in ("identity", "relu", "leaky_relu"):
        return mpmath.mpf(1) if name == "identity" or s > 0 else mpmath.mpf(0 if name == "relu" else 1) / 100
    if name in ("elu", "selu"):
        scale, alpha = (mpmath.mpf(SELU), mpmath.mpf(ALPHA)) if name == "selu" else (1, 1)
        return scale if s > 0 else s + scale * alpha
    if name == "scaled_tanh":
        return (mpmath.mpf(17159) / 10000 - s * s * 10000 / 17159) * 2 / 3
    if name in ("sigmoid", "tanh", "softplus"):
        return s * (1 - s) if name == "sigmoid" else 1 - s * s if name == "tanh" else -mpmath.expm1(-s)
    if name == "silu":
        sigma = 1 / (1 + mpmath.exp(-s))
        return sigma * (1 + s * (1 - sigma))
    s = min(max(s, -60), 60)
    return mpmath.ncdf(s) + s * mpmath.npdf(s)


# -- errors ---------------------------------------------------------------------------------------------------------------


def ulp_of(truth: Array, dtype: Any) -> Array:
    """The spacing of the dtype at the truth."""
    info = np.finfo(dtype)
    size = np.minimum(abs(truth), np.float64(info.max) if dtype == np.float32 else truth.dtype.type(info.max))
    _, exponent = np.frexp(np.maximum(size, info.smallest_subnormal))
    return np.ldexp(truth.dtype.type(1), np.maximum(exponent - 1, info.minexp) - info.nmant)


def errors(got: Array, truth: Array, dtype: Any, size: Array | None = None) -> Array:
    """In ulp; what rounds to an infinity must be one."""
    with np.errstate(all="ignore"):
        infinite = np.isinf(truth.astype(dtype))
        assert np.array_equal(np.isinf(got), infinite), "infinite in other places"
        off = abs(got.astype(truth.dtype) - truth) / ulp_of(truth if size is None else np.maximum(abs(truth), size), dtype)
    return np.where(infinite, 0, off).astype(float)


def report(what: str, x: Array, off: Array, bound: float | Array, near_zero: Array | None = None) -> None:
    """Print the worst error (and, if there are any, of results near zero apart), and hold all of them against the bound."""
    assert not np.isnan(off).any(), f"{what}: NaN at {x[np.isnan(off)][:3]}"
    usual = off if near_zero is None else np.where(near_zero, 0, off)
    worst = int(usual.argmax())
    apart = "" if near_zero is None else f"; subnormal: {np.where(near_zero, off, 0).max():.0f}"
    print(
        f"  {what:24} {x.dtype}: {usual[worst]:6.3f} ulp at {x[worst]:<24}, mean {usual.mean():.3f}, {off.size:,} inputs{apart}"
    )
    over = off > bound
    assert not over.any(), f"{what}: {off[over][0]:.2f} ulp at {x[over][0]!r}; {over.sum()} inputs are over the bound"


@pytest.fixture(autouse=True)
def precise() -> Iterator[None]:
    with np.errstate(all="ignore"):
        if mpmath is None:
            yield
        else:
            with mpmath.workdps(120):
                yield


def true_values(
    name: str, x: Array, wide: dict[str, Callable[[Array], Array]], by_mpmath: Callable[[str, float], Any]
) -> Array:
    """In float64 for float32 inputs; for float64 ones in long double, rounded from mpmath where both are there."""
    if x.dtype == np.float32:
        return wide[name](x.astype(np.float64))
    if mpmath is None or WIDE is np.float64:
        if name == "gelu" or WIDE is np.float64:
            pytest.skip("needs mpmath and a long double wider than float64")
        return wide[name](x.astype(WIDE))
    values = [by_mpmath(name, v) for v in x.tolist()]
    high = np.array([float(v) for v in values])
    rest = [0.0 if np.isinf(h) else float(v - mpmath.mpf(h)) for v, h in zip(values, high.tolist(), strict=True)]
    return high.astype(WIDE) + np.array(rest, WIDE)


def sample(dtype: Any, each: tuple[int, int]) -> Array:
    return stratified(dtype, each[0] if dtype == np.float32 else each[1])


# -- f and f' -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_f(name: str, dtype: np.dtype) -> None:
    x = sample(dtype, (16 if name == "gelu" else 100, 3))
    got, truth = f(name, x), true_values(name, x, WIDER, exact)
    bound: float | Array = F_BOUND[name]
    small: Array | None = None
    if name in SUBNORMAL_FACTOR:
        small = abs(truth) < abs(x) * 4 * float(np.finfo(dtype).tiny)  # the factor is subnormal, or all but
        bound = np.where(small, bound + abs(x), bound).astype(float)
    report(f"f  {name}", x, errors(got, truth, dtype), bound, small)


def saved_values(name: str, dtype: Any) -> Array:
    """What f may leave behind: z for gelu and silu, otherwise the range of f."""
    x = sample(dtype, (16 if name == "gelu" else 100, 3))
    low = {"sigmoid": 0, "softplus": 0, "relu": 0, "tanh": -1, "elu": -1, "scaled_tanh": -LECUN, "selu": -SELU * ALPHA}
    high = {"sigmoid": 1, "tanh": 1, "scaled_tanh": LECUN}
    return x[(x >= low.get(name, -np.inf)) & (x <= high.get(name, np.inf))]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gain(name: str, dtype: np.dtype) -> None:
    s = saved_values(name, dtype)
    got, truth = gain(name, s), true_values(name, s, WIDER_GAIN, exact_gain)
    size, small = None, None
    if name in ("scaled_tanh", "selu"):
        size = np.full(s.shape, 1.0)
    elif name in SAVES_Z:
        t = np.clip(s.astype(np.float64), -700, 700)
        size = np.maximum(logistic(t), abs(t) * logistic(t) * logistic(-t)) if name == "silu" else abs(t) * density(t)
    bound: float | Array = GAIN_BOUND[name]
    if name == "silu":
        bound = bound + 0.5 * np.clip(s, 0, 40).astype(float)
    if name in SAVES_Z:  # factors of the terms may be subnormal, as in f
        small = abs(truth) < (1 + abs(s)) * 4 * float(np.finfo(dtype).tiny)
        bound = np.where(small, bound + 2 * abs(s), bound).astype(float)
    report(f"f' {name}", s, errors(got, truth, dtype, size), bound, small)


def test_f_is_monotone_and_odd_where_it_should_be(dtype: np.dtype) -> None:
    """Not more than the noise of their own bounds: neighbours may step back by 2 ulp where a function is flat."""
    x = np.sort(np.concatenate([stratified(dtype, 50), np.linspace(-30, 30, 100_001).astype(dtype)]))
    for name in ("sigmoid", "tanh", "scaled_tanh", "elu", "selu", "softplus", "leaky_relu", "relu"):
        a = f(name, x).astype(np.float64)
        back = (a[:-1] - a[1:]) / np.asarray(ulp_of(np.maximum(abs(a[:-1]), 0), dtype), float)
        assert np.nanmax(np.where(np.isfinite(back), back, 0)) <= 2, name
    for name in ("tanh", "scaled_tanh", "identity"):
        assert np.array_equal(f(name, -x), -f(name, x)), name
    for name, low, high in (("sigmoid", 0, 1), ("tanh", -1, 1), ("elu", -1, None), ("softplus", 0, None)):
        a = f(name, x)
        assert a.min() >= low and (high is None or a.max() <= high), name
        slope = gain(name, a)
        assert slope.min() >= 0 and slope.max() <= 1, f"f' of {name}"


# f at +-0, +-inf: the limits.  -inf is a NaN by the formula z sigma(z), z Phi(z) = -inf * 0, as everywhere else.
LIMITS = {  # f(-inf), f(-0), f(0), f(inf)
    "identity": (-np.inf, -0.0, 0.0, np.inf), "sigmoid": (0.0, 0.5, 0.5, 1.0), "tanh": (-1.0, -0.0, 0.0, 1.0),
    "scaled_tanh": (-LECUN, -0.0, 0.0, LECUN), "relu": (0.0, -0.0, 0.0, np.inf), "leaky_relu": (-np.inf, -0.0, 0.0, np.inf),
    "elu": (-1.0, -0.0, 0.0, np.inf), "selu": (-SELU * ALPHA, -0.0, 0.0, np.inf), "gelu": (np.nan, -0.0, 0.0, np.inf),
    "silu": (np.nan, -0.0, 0.0, np.inf), "softplus": (0.0, math.log(2), math.log(2), np.inf),
}  # fmt: skip


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_limits(name: str, dtype: np.dtype) -> None:
    x = np.array([-np.inf, -0.0, 0.0, np.inf], dtype)
    got, expected = f(name, x), np.array(LIMITS[name], dtype)
    np.testing.assert_allclose(got, expected, rtol=2 * float(np.finfo(dtype).eps), atol=0)
    assert np.array_equal(np.signbit(got)[1:], np.signbit(expected)[1:])
    for nan in (np.nan, -np.nan, np.array([0x7FA00000], "u4").view("f4")[0]):  # the last one is signalling
        assert np.isnan(f(name, np.array([nan], dtype))).all(), "NaN stays NaN"


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gain_of_huge_numbers_is_the_limit(name: str, dtype: np.dtype) -> None:
    top = np.finfo(dtype).max
    saved = np.array([-top, top] if name in SAVES_Z else f(name, np.array([-top, top], dtype)), dtype)
    limits = {"leaky_relu": (0.01, 1), "identity": (1, 1), "selu": (0, SELU)}
    limits |= dict.fromkeys(("relu", "elu", "gelu", "silu", "softplus"), (0, 1))
    expected = limits.get(name, (0, 0))
    np.testing.assert_allclose(gain(name, saved), expected, rtol=1e-6, atol=4 * float(np.finfo(dtype).eps))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_gain_of_infinities_and_nan(name: str, dtype: np.dtype) -> None:
    """As kernels/activations.py says it: at z = inf, -inf and NaN, from what is saved there."""
    z = np.array([np.inf, -np.inf, np.nan], dtype)
    gains = {
        "identity": (1, 1, 1), "relu": (1, 0, 0), "leaky_relu": (1, 0.01, 0.01), "elu": (1, 0, np.nan),
        "selu": (SELU, 0, np.nan), "softplus": (1, 0, np.nan), "gelu": (np.nan,) * 3, "silu": (np.nan,) * 3,
    }  # fmt: skip
    got = gain(name, z if name in SAVES_Z else f(name, z))
    np.testing.assert_allclose(got, gains.get(name, (0, 0, np.nan)), rtol=1e-6, atol=4 * float(np.finfo(dtype).eps))


# -- softmax and losses ---------------------------------------------------------------------------------------------------


def rows(dtype: Any, seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    spreads = (1e-4, 0.1, 1, 5, 20, 60)
    made = [(rng.normal(0, s, (300, n)) + rng.normal(0, 3)).astype(dtype) for n in (2, 3, 10, 17) for s in spreads]
    return [*made, rng.normal(0, 2, (20, 1000)).astype(dtype), np.full((3, 300), 7, dtype)]


def true_softmax(Z: Array, dtype: Any) -> tuple[Array, Array, Array]:
    """a, m = max z, ln sum exp(z - m)."""
    z = Z.astype(np.float64 if dtype == np.float32 else WIDE)
    m = z.max(1, keepdims=True)
    e = np.exp(z - m)
    s = e.sum(1, keepdims=True)
    return e / s, m, np.log(s)


@pytest.fixture
def wide_enough(dtype: np.dtype) -> None:
    if dtype == np.float64 and WIDE is np.float64:
        pytest.skip("needs a long double wider than float64")


@pytest.mark.usefixtures("wide_enough")
def test_softmax(dtype: np.dtype) -> None:
    """3 ulp for exp, the quotient and the result's place between powers of two; sqrt(n) for n additions, whose roundings are
    a random walk;
    |z - m| for the rounding of z - m in the exponent (0.5 relative to the result, so up to twice that in its ulp)."""
    worst = 0.0
    for Z in rows(dtype, 1):
        a, m, _ = true_softmax(Z, dtype)
        got = cpu_backend(2).activate(Z, "softmax")
        off = errors(got, a, dtype)
        bound = 3 + np.asarray(abs(Z - m), float) + math.sqrt(Z.shape[1])
        assert (off <= bound).all(), (Z.shape, off.max())
        close = abs(Z - m) < 1
        worst = max(worst, off[close].max())
        ulps_of_one = abs(got.astype(np.float64).sum(1) - 1).max() / np.finfo(dtype).eps
        assert ulps_of_one <= 2 + math.sqrt(Z.shape[1]), "a row adds up to 1"
    print(f"  {'softmax, |z - max| < 1':24} {dtype}: {worst:6.3f} ulp")


def test_softmax_of_extremes(dtype: np.dtype) -> None:
    top = np.finfo(dtype).max
    Z = np.array([[top, -top, 0], [-top, -top, -top], [top, top, top], [0, -np.inf, 0]], dtype)
    expected = np.array([[1, 0, 0], [1, 1, 1], [1, 1, 1], [1.5, 0, 1.5]]) / [[1], [3], [3], [3]]
    np.testing.assert_allclose(cpu_backend(1).activate(Z, "softmax"), expected, rtol=2 * float(np.finfo(dtype).eps))
    for row in ([np.nan, 0, 1], [0, np.nan, 1], [0, 1, np.nan], [np.inf, 0, 1], [-np.inf] * 3):
        a = cpu_backend(1).activate(np.array([row], dtype), "softmax")
        assert np.isnan(a).any(), "no number is made up where there is none"
    dZ, losses = cpu_backend(1).output_delta(Z[:3], np.array([1, 2, 0]), scale=np.ones(1, dtype))
    assert losses[0] == np.inf and np.isfinite(losses[1:]).all() and np.isfinite(dZ).all()


@pytest.mark.usefixtures("wide_enough")
def test_cross_entropy(dtype: np.dtype) -> None:
    """ln s - (z - m): 1 ulp for the difference, 2 for the logarithm, some for the sum, each of the larger of the two and 1."""
    worst = 0.0
    for Z in rows(dtype, 2):
        a, m, log_s = true_softmax(Z, dtype)
        n, o = Z.shape
        labels = np.random.default_rng(o).integers(0, o, n)
        one = np.ones(1, dtype)
        dZ, losses = cpu_backend(2).output_delta(Z, labels, scale=one)
        distance = (m - Z)[np.arange(n), labels]
        truth = log_s[:, 0] + distance
        size = np.maximum(1.0, np.maximum(log_s[:, 0], distance)).astype(float)
        off = errors(losses, truth, dtype, size)
        assert off.max() <= 3 + min(o, 100) / 20, (Z.shape, off.max())
        worst = max(worst, off.max())
        rest = errors(dZ, a - np.eye(o)[labels], dtype, np.eye(o)[labels].astype(float))
        assert (rest <= 4 + np.asarray(abs(Z - m), float) + math.sqrt(o)).all()
        soft = np.eye(o, dtype=dtype)[labels]
        dZ_soft, losses_soft = cpu_backend(2).output_delta(Z, soft, scale=one)
        np.testing.assert_allclose(losses_soft, losses, rtol=4 * float(np.finfo(dtype).eps))
        assert np.array_equal(dZ_soft, dZ), "a label is a row of 0 and one 1"
    print(f"  {'cross-entropy':24} {dtype}: {worst:6.3f} ulp of the larger term")


@pytest.mark.usefixtures("wide_enough")
def test_binary_cross_entropy(dtype: np.dtype) -> None:
    rng = np.random.default_rng(3)
    spread = np.repeat([1e-3, 1, 10, 50, 300], 2000)
    Z = rng.normal(0, spread).astype(dtype)[:, None]
    y = np.where(rng.random(Z.shape) < 0.5, rng.integers(0, 2, Z.shape), rng.random(Z.shape)).astype(dtype)
    dZ, losses = cpu_backend(2).output_delta(Z, y, "binary_cross_entropy", "sigmoid", scale=np.ones(1, dtype))
    z = Z.astype(np.float64 if dtype == np.float32 else WIDE)
    plus = WIDER["softplus"](z)
    off = errors(losses, (plus - y * z)[:, 0], dtype, plus.astype(float)[:, 0])  # of the larger of two terms
    report("binary cross-entropy", Z[:, 0], off, 4.0)
    rest = errors(dZ, logistic(z) - y, dtype, np.asarray(np.maximum(logistic(z), y), float))
    report("its dC/dz", Z.ravel(), rest.ravel(), 4.0)


# -- every float32 --------------------------------------------------------------------------------------------------------


@pytest.mark.exhaustive
@pytest.mark.parametrize("name", ["tanh", "sigmoid"])
def test_every_float32(name: str) -> None:
    """All 2^32: against float64 between 2^-30 and 128, and against the limit outside."""
    worst, where, step = 0.0, 0.0, 1 << 22
    for start in range(0, 1 << 32, step):
        x = np.arange(start, start + step, dtype=np.uint64).astype(np.uint32).view(np.float32)
        got = f(name, x)
        size = abs(x[0])
        if np.isnan(x).any():
            assert np.array_equal(np.isnan(got), np.isnan(x))
            x, got = x[~np.isnan(x)], got[~np.isnan(x)]
            if not x.size:
                continue
        if size >= 128:
            limit = np.sign(x) if name == "tanh" else (x > 0).astype(np.float32)
            assert np.array_equal(got, limit), f"beyond 128, from {x[0]}"
        elif abs(x).max() < 2.0**-30:
            assert (abs(got - x) <= np.spacing(abs(x)) if name == "tanh" else abs(got - 0.5) <= 2.0**-24).all(), x[0]
        else:
            off = errors(got, WIDER[name](x.astype(np.float64)), np.float32)
            if off.max() > worst:
                worst, where = float(off.max()), float(x[off.argmax()])
    print(f"  {name}: {worst:.4f} ulp at {where!r} of all float32")
    assert worst <= F_BOUND[name]
