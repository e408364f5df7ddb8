"""What becomes of a gradient: it is stored, or it moves the parameters at once.

A rule takes a vector of gradients g and the place of its parameters in an UPDATE record; `state` is laid out like the
parameters.  hyper = [lr, momentum, weight_decay]:

    store      parameter = g
    sgd        w = w - lr (g + weight_decay w)
    momentum   v = momentum v + (g + weight_decay w),  w = w - lr v                                  Polyak (1964)
    nesterov   v as above,  w = w - lr ((g + weight_decay w) + momentum v)        Sutskever et al., ICML 2013

Every "a b + c" above is one fma.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .machine import GRAIN, Lanes
from .records import FLAT_UPDATE, UPDATE, offset
from .team import record
from .vector import fma, load_splat, load_up_to, njit, store_up_to

BLOCK = GRAIN["update"]


def rule(V: Lanes, name: str) -> Any:
    """apply(update record's address, offset in bytes, g, how many lanes count)."""
    size = V.itemsize
    momentum, nesterov = name in ("momentum", "nesterov"), name == "nesterov"

    if name == "store":

        def apply(update: int, offset: int, g: Any, count: int) -> None:
            store_up_to(V, record(UPDATE, update).parameter + offset, g, count)

    else:

        def apply(update: int, offset: int, g: Any, count: int) -> None:
            p = record(UPDATE, update)
            w = load_up_to(V, p.parameter + offset, count)
            lr, decay = load_splat(V, p.hyper), load_splat(V, p.hyper + 2 * size)
            step = fma(decay, w, g)
            if momentum:
                mu = load_splat(V, p.hyper + size)
                v = fma(mu, load_up_to(V, p.state + offset, count), step)
                store_up_to(V, p.state + offset, v, count)
                step = fma(mu, v, step) if nesterov else v
            store_up_to(V, p.parameter + offset, fma(-lr, step, w), count)

    return njit(apply)


def update(V: Lanes, name: str) -> Callable[..., None]:
    """A whole flat gradient; the job is a FLAT_UPDATE record."""
    apply, lanes, size, PARAMETERS = rule(V, name), V.lanes, V.itemsize, offset(FLAT_UPDATE, "update")

    def update(job: int, scratch: int, step: int, item: int) -> None:
        p = record(FLAT_UPDATE, job)
        for i in range(item * BLOCK, min((item + 1) * BLOCK, p.length), lanes):
            count = min(lanes, p.length - i)
            apply(job + PARAMETERS, i * size, load_up_to(V, p.gradient + i * size, count), count)

    return update
