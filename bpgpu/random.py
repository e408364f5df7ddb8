"""Numbers at random that are the same everywhere: Philox, a counter-based generator (Salmon et al., SC 2011).

(seed, stream) names an endless sequence of 64-bit words; initial weights, shuffles and dropout
are exact functions of these words.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# streams: WEIGHTS + layer, SHUFFLE + epoch, TRANSFORM + epoch, DROPOUT + layer * 2^40 + step
WEIGHTS, SHUFFLE, TRANSFORM, DROPOUT, SPLIT = 0, 1 << 32, 1 << 33, 1 << 62, 1 << 63


def check_seed(seed: object) -> int:
    if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool) or not 0 <= int(seed) < 1 << 64:
        raise ValueError(f"seed is {seed!r}; expected an integer from 0 to 2^64 - 1")
    return int(seed)


def words(seed: int, stream: int, count: int) -> npt.NDArray[np.uint64]:
    return np.random.Philox(key=np.array([seed, stream], np.uint64)).random_raw(count)


def generator(seed: int, stream: int, block: int = 0) -> np.random.Generator:
    """NumPy's generator on the words of a stream from block * 2^130 on."""
    counter = np.array([0, 0, block, 0], np.uint64)
    return np.random.Generator(np.random.Philox(key=np.array([seed, stream], np.uint64), counter=counter))


def uniform(seed: int, stream: int, shape: tuple[int, ...], limit: float, dtype: npt.DTypeLike) -> np.ndarray:
    """Numbers from (-limit, limit)."""
    numbers = (words(seed, stream, int(np.prod(shape))) >> np.uint64(11)).astype(np.float64)
    numbers *= 2.0**-52  # in place: the numbers may be many
    numbers -= 1.0
    numbers *= limit
    return numbers.reshape(shape).astype(dtype)


def normal(seed: int, stream: int, shape: tuple[int, ...], deviation: float, dtype: npt.DTypeLike) -> np.ndarray:
    """Normally distributed numbers of mean 0, by Marsaglia's polar method: of IEEE operations alone, so the same everywhere."""
    count = int(np.prod(shape))
    pairs = 16 + count // 2 + count // 4  # of which a share of pi / 4 lies in the unit circle
    while True:
        u = uniform(seed, stream, (pairs, 2), 1.0, np.float64)
        square = u[:, 0] * u[:, 0] + u[:, 1] * u[:, 1]
        inside = (square > 0) & (square < 1)
        if 2 * int(inside.sum()) >= count:
            break
        pairs *= 2
    u, square = u[inside], square[inside]
    u *= np.sqrt(-2 * _log(square) / square)[:, None]
    numbers: np.ndarray = u.reshape(-1)[:count] * deviation
    return numbers.reshape(shape).astype(dtype)


def _log(x: np.ndarray) -> np.ndarray:
    """ln of positive normal numbers, by the series of 2 artanh s, s = (m - 1) / (m + 1), m in [0.7, 1.5)."""
    m, exponent = np.frexp(x)
    small = m < 0.75
    m, exponent = np.where(small, 2 * m, m), exponent - small
    s = (m - 1) / (m + 1)
    z, series = s * s, np.zeros_like(s)
    for k in range(25, 0, -2):
        series = series * z + 1 / k
    return np.asarray(exponent * 0.6931471805599453 + 2 * s * series)


def permutation(seed: int, stream: int, count: int) -> npt.NDArray[np.int64]:
    return np.argsort(words(seed, stream, count), kind="stable").astype(np.int64, copy=False)


def threshold(rate: float) -> int:
    """What a number of 32 bits must reach so that it does so with probability 1 - rate."""
    return round(rate * 2.0**32)


def mask(seed: int, stream: int, shape: tuple[int, ...], rate: float) -> npt.NDArray[np.bool_]:
    """Which elements dropout keeps: kernels/dropout.py."""
    count = int(np.prod(shape))
    halves = words(seed, stream, -(-count // 2)).astype("<u8").view("<u4")[:count]
    return (halves >= threshold(rate)).reshape(shape)
