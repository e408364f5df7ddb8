"""exp, expm1, log, log1p, tanh, sigmoid and the normal distribution, out of IEEE operations and fma alone.

The definition of each is the formula here, operation by operation, so that any machine and the GPU give the same bits
(functions.cuh is the twin).  Errors are within about 2 units in the last place (tests/test_functions.py prints them).

Reduction and series: Muller et al., Handbook of Floating-Point Arithmetic, 2nd ed. (2018), ch. 10.  Tail of the normal
distribution as a polynomial in (x - c) / (x + c): Shepherd and Laframboise, Mathematics of Computation 36 (1981) 249-253.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache
from typing import Any

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

INFINITY, NAN = math.inf, math.nan
SQRT_2 = 1.4142135623730951
INV_LN2 = 1.4426950408889634
INV_SQRT_2PI = 0.3989422804014327


@dataclass(frozen=True)
class Constants:
    """What differs between the dtypes: ln 2 in two parts, ranges, lengths of series, fitted coefficients."""

    ln2_high: float
    ln2_low: float
    exp_lowest: float  # below: exp is 0
    exp_highest: float  # above: exp is infinite
    expm1_lowest: float  # below: expm1 is -1
    tanh_highest: float  # above: tanh is 1
    smallest_normal: float
    fraction_bits: int
    exp_terms: int  # (e^r - 1 - r) / r^2 = 1/2! + r/3! + ..., |r| <= ln(2)/2
    log_terms: int  # (atanh(s) / s - 1) / s^2 = 1/3 + s^2/5 + ..., |s| <= 0.172
    tail_center: float  # Phi(-x) = exp(-x^2/2) P((x - c)/(x + c)) / (x + c)
    tail: tuple[float, ...]


CONSTANTS = {
    "float32": Constants(
        0.6931471824645996, -1.904654299957768e-09, -104.0, 89.0, -18.0, 10.0, 2.0**-126, 23, 6, 5, 3.5,
        (0.7444160580635071, -0.5655618906021118, 0.3154250681400299, -0.11604904383420944, 0.017406059429049492,
         0.006465233862400055, -0.0031789857894182205, -0.0004177686059847474, 0.00045269393012858927,
         3.463520260993391e-05, -4.976688796887174e-05),
    ),
    "float64": Constants(
        0.6931471805599453, 2.3190468138462996e-17, -746.0, 710.0, -40.0, 20.0, 2.0**-1022, 52, 13, 12, 4.0,
        (0.7552851304157515, -0.6078966419718923, 0.38713740074221453, -0.18652185795963533, 0.06039657489093607,
         -0.007540188967419565, -0.0034796923673884156, 0.0016308184678064444, 0.00013334431270030784,
         -0.00023109501999200649, -1.908265085342679e-06, 3.5145122560125815e-05, 7.167263978705016e-07,
         -5.921638801978817e-06, -6.299974265164222e-07, 1.0248325060946323e-06, 2.727176083262385e-07,
         -1.5982676610438677e-07, -8.713294621467491e-08, 1.7881872409503415e-08, 2.1604426842720404e-08,
         -6.021003727951476e-10, -3.798041859957449e-09, -1.1742107539247065e-10, 3.51569242668093e-10),
    ),
}  # fmt: skip


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
    exp_series = polynomial(*(1 / math.factorial(k + 2) for k in range(c.exp_terms)))
    log_series = polynomial(*(1 / (2 * k + 3) for k in range(c.log_terms)))
    tail = polynomial(*c.tail)

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
