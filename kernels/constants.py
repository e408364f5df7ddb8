"""The numbers in the definitions of functions.py, the same for the CPU and the GPU.  Importing this file needs nothing."""

from __future__ import annotations

import math
from dataclasses import dataclass

INFINITY, NAN = math.inf, math.nan
SQRT_2 = 1.4142135623730951
INV_LN2 = 1.4426950408889634
INV_SQRT_2PI = 0.3989422804014327
SCALED_TANH, TANH_SCALE = 1.7159, 2.0 / 3.0  # LeCun, Efficient BackProp (1998)
LEAK = 0.01
SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772  # Klambauer et al. (2017)


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
    exp_series: tuple[float, ...]  # (e^r - 1 - r) / r^2 = 1/2! + r/3! + ..., |r| <= ln(2)/2
    log_series: tuple[float, ...]  # (atanh(s) / s - 1) / s^2 = 1/3 + s^2/5 + ..., |s| <= 0.172
    tail_center: float  # Phi(-x) = exp(-x^2/2) P((x - c)/(x + c)) / (x + c)
    tail: tuple[float, ...]


def _exp_series(terms: int) -> tuple[float, ...]:
    return tuple(1 / math.factorial(k + 2) for k in range(terms))


def _log_series(terms: int) -> tuple[float, ...]:
    return tuple(1 / (2 * k + 3) for k in range(terms))


CONSTANTS = {
    "float32": Constants(
        0.6931471824645996, -1.904654299957768e-09, -104.0, 89.0, -18.0, 10.0, 2.0**-126, 23,
        _exp_series(6), _log_series(5),
        3.5, (0.7444160580635071, -0.5655618906021118, 0.3154250681400299, -0.11604904383420944, 0.017406059429049492,
         0.006465233862400055, -0.0031789857894182205, -0.0004177686059847474, 0.00045269393012858927,
         3.463520260993391e-05, -4.976688796887174e-05),
    ),
    "float64": Constants(
        0.6931471805599453, 2.3190468138462996e-17, -746.0, 710.0, -40.0, 20.0, 2.0**-1022, 52,
        _exp_series(13), _log_series(12),
        4.0, (0.7552851304157515, -0.6078966419718923, 0.38713740074221453, -0.18652185795963533, 0.06039657489093607,
         -0.007540188967419565, -0.0034796923673884156, 0.0016308184678064444, 0.00013334431270030784,
         -0.00023109501999200649, -1.908265085342679e-06, 3.5145122560125815e-05, 7.167263978705016e-07,
         -5.921638801978817e-06, -6.299974265164222e-07, 1.0248325060946323e-06, 2.727176083262385e-07,
         -1.5982676610438677e-07, -8.713294621467491e-08, 1.7881872409503415e-08, 2.1604426842720404e-08,
         -6.021003727951476e-10, -3.798041859957449e-09, -1.1742107539247065e-10, 3.51569242668093e-10),
    ),
}  # fmt: skip
