"""Numbers at random that are the same everywhere: Philox, a counter-based generator (Salmon et al., SC 2011).

(seed, stream) names an endless sequence of 64-bit words; initial weights, shuffles and dropout
are exact functions of these words.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

# streams: WEIGHTS + layer, SHUFFLE + epoch, DROPOUT + layer * 2^40 + step
WEIGHTS, SHUFFLE, DROPOUT, SPLIT = 0, 1 << 32, 1 << 62, 1 << 63


def check_seed(seed: object) -> int:
    if not isinstance(seed, (int, np.integer)) or isinstance(seed, bool) or not 0 <= int(seed) < 1 << 64:
        raise ValueError(f"seed is {seed!r}; expected an integer from 0 to 2^64 - 1")
    return int(seed)


def words(seed: int, stream: int, count: int) -> npt.NDArray[np.uint64]:
    return np.random.Philox(key=np.array([seed, stream], np.uint64)).random_raw(count)


def uniform(seed: int, stream: int, shape: tuple[int, ...], limit: float, dtype: npt.DTypeLike) -> np.ndarray:
    """Numbers from (-limit, limit)."""
    numbers = (words(seed, stream, int(np.prod(shape))) >> np.uint64(11)).astype(np.float64)
    numbers *= 2.0**-52  # in place: the numbers may be many
    numbers -= 1.0
    numbers *= limit
    return numbers.reshape(shape).astype(dtype)


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
