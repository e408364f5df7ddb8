"""Learning rates that change with the step: SGD(schedules.cosine(0.1, 10_000)).

Each gives a function of t = 0, 1, 2, ..., the number of steps taken before; so any other function of t will do, too.
ValueError: a negative number, no steps.
"""

from __future__ import annotations

import math

from .checks import amount, count
from .optim import Schedule


def step(rate: float, every: int, factor: float = 0.1) -> Schedule:
    """rate * factor^floor(t / every)."""
    _check(rate=rate, factor=factor, every=every)
    return lambda t: rate * factor ** (t // every)


def exponential(rate: float, factor: float) -> Schedule:
    """rate * factor^t."""
    _check(rate=rate, factor=factor)
    return lambda t: rate * factor**t


def invscaling(rate: float, power: float = 0.5) -> Schedule:
    """rate / (t + 1)^power   (Robbins and Monro, 1951, for power 1)."""
    _check(rate=rate, power=power)
    return lambda t: rate / (t + 1) ** power


def cosine(rate: float, steps: int, lowest: float = 0.0) -> Schedule:
    """From rate at t = 0 along half a cosine to `lowest` at t = steps, where it stays   (Loshchilov and Hutter, ICLR 2017)."""
    _check(rate=rate, lowest=lowest, steps=steps)
    return lambda t: lowest + (rate - lowest) * _fall(t / steps)


def warm_up(schedule: float | Schedule, steps: int) -> Schedule:
    """Before another schedule (or a number): in `steps` steps linearly up to its rate; then it, counted from 0."""
    _check(steps=steps)
    if not callable(schedule):
        rate = amount("schedule", schedule)
        return lambda t: rate * min((t + 1) / steps, 1)
    return lambda t: schedule(0) * (t + 1) / steps if t < steps else schedule(t - steps)


def one_cycle(highest: float, steps: int, *, rise: float = 0.3, first: float = 25.0, last: float = 1e4) -> Schedule:
    """Up from highest / first along a cosine for a share `rise` of the steps, then down to highest / first / last   (Smith and
    Topin, 2017)."""
    _check(highest=highest, steps=steps)
    if not 0 < rise < 1 or not first >= 1 or not last >= 1:
        raise ValueError(
            f"one_cycle got rise={rise!r}, first={first!r}, last={last!r}; expected 0 < rise < 1, first and last 1 or more"
        )
    top, low = rise * steps, highest / first

    def rate(t: int) -> float:
        if t < top:
            return highest - (highest - low) * _fall(t / top)
        return low / last + (highest - low / last) * _fall((t - top) / (steps - top))

    return rate


def _fall(share: float) -> float:
    """From 1 to 0 along half a cosine."""
    return (1 + math.cos(math.pi * min(share, 1))) / 2


def _check(**values: float) -> None:
    for name, value in values.items():
        (count if name in ("steps", "every") else amount)(name, value)
