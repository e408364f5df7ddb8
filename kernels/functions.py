"""exp, expm1, log, log1p, tanh, sigmoid and the normal distribution, out of IEEE operations and fma alone.

The definition of each is the formula here, operation by operation, so that any machine and the GPU give the same bits
(functions.cuh is the twin).  Errors are within about 2.5 units in the last place, of the normal distribution 6
(tests/test_functions.py prints them).

Reduction and series: Muller et al., Handbook of Floating-Point Arithmetic, 2nd ed. (2018), ch. 10.  Tail of the normal
distribution as a polynomial in (x - c) / (x + c): Shepherd and Laframboise, Mathematics of Computation 36 (1981) 249-253.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

from .constants import CONSTANTS, INFINITY, INV_LN2, INV_SQRT_2PI, NAN, SQRT_2
from .machine import Lanes
from .vector import (
    absolute,
    copysign,
    exponent,
    fma,
    mantissa,
    njit,
    polynomial,
    power_of_two,
    round_even,
    select,
    splat,
)


@dataclass(frozen=True)
class Functions:
    """The functions of vectors of one dtype."""

    exp: Any
    expm1: Any
    log: Any
    log1p: Any
    tanh: Any
    sigmoid: Any
    normal: Any


@cache
def functions(V: Lanes) -> Functions:
    c = CONSTANTS[V.dtype]
    LN2_HIGH, LN2_LOW, FRACTION_BITS = c.ln2_high, c.ln2_low, float(c.fraction_bits)
    EXP_LOWEST, EXP_HIGHEST, EXPM1_LOWEST, TANH_HIGHEST = c.exp_lowest, c.exp_highest, c.expm1_lowest, c.tanh_highest
    SMALLEST_NORMAL, SCALE_UP, TAIL_CENTER = c.smallest_normal, 2.0**c.fraction_bits, c.tail_center
    exp_series, log_series, tail = polynomial(*c.exp_series), polynomial(*c.log_series), polynomial(*c.tail)

    @njit
    def reduced(x: Any) -> Any:
        """x = n ln 2 + r, |r| <= ln(2)/2: n and e^r - 1.  NaN gives n = 0 and NaN."""
        n = round_even(x * INV_LN2)
        n = select(n == n, n, 0.0)
        r = fma(-n, LN2_LOW, fma(-n, LN2_HIGH, x))
        return n, fma(exp_series(r), r * r, r)

    @njit
    def exp(x: Any) -> Any:
        """e^x; 0 at -inf, inf at inf."""
        x = select(x < EXP_LOWEST, EXP_LOWEST, select(x > EXP_HIGHEST, EXP_HIGHEST, x))
        n, m = reduced(x)
        half = round_even(n * 0.5)  # 2^n in two steps: subnormal results are rounded once, infinite ones overflow
        return ((m + 1.0) * power_of_two(half)) * power_of_two(n - half)

    @njit
    def expm1(x: Any) -> Any:
        """e^x - 1, accurate near 0; -1 at -inf, inf at inf."""
        x = select(x < EXPM1_LOWEST, EXPM1_LOWEST, select(x > EXP_HIGHEST, EXP_HIGHEST, x))
        n, m = reduced(x)
        half = power_of_two(n - 1.0)  # 2^n itself would overflow just below the largest results
        return fma(half, m, half - 0.5) * 2.0

    @njit
    def log(x: Any) -> Any:
        """ln x; -inf at 0, NaN below, inf at inf."""
        small = x < SMALLEST_NORMAL
        positive = select(x > 0.0, x, 1.0)
        finite = select(positive < INFINITY, positive, 1.0)
        scaled = select(small, finite * SCALE_UP, finite)
        e, m = exponent(scaled), mantissa(scaled)
        large = m > SQRT_2
        e, m = select(large, e + 1.0, e), select(large, m * 0.5, m)  # x = 2^e m, m in [sqrt(1/2), sqrt(2)]
        e = select(small, e - FRACTION_BITS, e)
        f = m - 1.0
        s = f / (f + 2.0)  # ln m = 2 atanh s
        z = s * s
        half_square = f * f * 0.5
        rest = s * fma(z * 2.0, log_series(z), half_square)  # ln(1 + f) = f - (f^2/2 - rest)
        result = fma(e, LN2_HIGH, f - (half_square - fma(e, LN2_LOW, rest)))
        result = select(x > 0.0, result, select(x == 0.0, splat(V, -INFINITY), NAN))
        return select(x == INFINITY, x, result)

    @njit
    def log1p(x: Any) -> Any:
        """ln(1 + x) for x >= 0, accurate near 0."""
        u = x + 1.0
        return select(x < 1.0, log(u) + (x - (u - 1.0)) / u, log(u))

    @njit
    def tanh(x: Any) -> Any:
        """(e^2x - 1) / (e^2x + 1), accurate near 0."""
        size = absolute(x)
        t = expm1(select(size > TANH_HIGHEST, TANH_HIGHEST, size) * 2.0)
        return copysign(select(size > TANH_HIGHEST, 1.0, t / (t + 2.0)), x)

    @njit
    def sigmoid(x: Any) -> Any:
        """1 / (1 + e^-x), accurate in both tails."""
        e = exp(-absolute(x))
        return select(x < 0.0, e, 1.0) / (e + 1.0)

    @njit
    def normal(x: Any) -> Any:
        """The normal distribution and its density: Phi(x) and exp(-x^2/2) / sqrt(2 pi), accurate in the lower tail."""
        size = absolute(x)
        square = size * size
        error = fma(size, size, -square)  # of the rounded square, so that the exponential stays accurate
        finite = select(square < INFINITY, error, 0.0)
        e = exp(square * -0.5)
        e = fma(e, finite * -0.5, e)
        inverse = 1.0 / (size + TAIL_CENTER)
        t = select(size < INFINITY, (size - TAIL_CENTER) * inverse, 1.0)
        below = e * (tail(t) * inverse)
        return select(x < 0.0, below, 1.0 - below), e * INV_SQRT_2PI

    return Functions(exp, expm1, log, log1p, tanh, sigmoid, normal)
