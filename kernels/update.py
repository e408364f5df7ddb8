"""What becomes of a gradient: it is stored, or it moves the parameters at once.

A rule takes a vector of gradients g and the place of its parameters in an UPDATE record; the states are laid out like the
parameters.  Its numbers are those of names.HYPER; what a class of bpgpu/optim.py wants is said in them alone.

    store      parameter = g
    add        parameter = parameter + g

    every other rule    g = (l2 w + g) + l1 sign(w),  then u, then  w = (w - decay w) - learning_rate u
                        (with l2 = l1 = decay = 0 no more than u and  w = w - learning_rate u)
    sgd        u = g
    momentum   v = beta1 v + gain1 g,  u = v                                                          Polyak (1964)
    nesterov   v as above,  u = beta1 v + gain1 g                                Sutskever et al., ICML 2013
    rmsprop    s = beta2 s + gain2 (g g),  u = g / (sqrt(s) + epsilon)      Hinton (2012); Adagrad: Duchi et al., JMLR 2011
    adam       m = beta1 m + gain1 g,  s as above,  u = m / (sqrt(s) + epsilon)        Kingma and Ba, ICLR 2015

Every a b + c, c + a b and c - a b above is one fma, the inner one first.  sign(0) = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from .machine import GRAIN, Lanes
from .names import HYPER, RULES
from .records import FLAT_UPDATE, UPDATE, offset
from .team import record
from .vector import fma, load_number, load_splat, load_up_to, njit, select, sqrt, store_up_to

BLOCK = GRAIN["update"]


@cache
def rule(V: Lanes, name: str) -> Any:
    """begin(update record's address) gives what is the same for all; apply(that, offset in bytes, g, how many lanes count)."""
    if name in ("store", "add"):
        add = name == "add"

        @njit
        def begin_store(update: int) -> Any:
            return record(UPDATE, update).parameter

        @njit
        def store(parameter: int, offset: int, g: Any, count: int) -> None:
            store_up_to(V, parameter + offset, load_up_to(V, parameter + offset, count) + g if add else g, count)

        return begin_store, store

    LEARNING_RATE, L2, L1, DECAY, BETA1, GAIN1, BETA2, GAIN2, EPSILON = (i * V.itemsize for i in range(len(HYPER)))
    averages, squares, nesterov = (
        "velocity" in RULES[name] or "mean" in RULES[name],
        "square" in RULES[name],
        name == "nesterov",
    )

    @njit
    def begin(update: int) -> Any:
        p = record(UPDATE, update)
        h = p.hyper
        penalized = load_number(V, h + L2) != 0.0 or load_number(V, h + L1) != 0.0 or load_number(V, h + DECAY) != 0.0
        penalties = penalized, load_splat(V, h + L2), load_splat(V, h + L1), -load_splat(V, h + DECAY)
        average = load_splat(V, h + BETA1), load_splat(V, h + GAIN1)
        square = load_splat(V, h + BETA2), load_splat(V, h + GAIN2), load_splat(V, h + EPSILON)
        second = p.state2 if averages else p.state1
        return p.parameter, p.state1, second, -load_splat(V, h + LEARNING_RATE), penalties, average, square

    @njit
    def apply(begun: Any, offset: int, g: Any, count: int) -> None:
        parameter, average, square, minus_rate, penalties, (beta1, gain1), (beta2, gain2, epsilon) = begun
        penalized, l2, l1, minus_decay = penalties
        w = load_up_to(V, parameter + offset, count)
        if penalized:
            g = fma(l2, w, g) + select(w > 0.0, l1, select(w < 0.0, -l1, 0.0))
        u = g
        if averages:
            scaled = gain1 * g
            v = fma(beta1, load_up_to(V, average + offset, count), scaled)
            store_up_to(V, average + offset, v, count)
            u = fma(beta1, v, scaled) if nesterov else v
        if squares:
            s = fma(beta2, load_up_to(V, square + offset, count), gain2 * (g * g))
            store_up_to(V, square + offset, s, count)
            u = u / (sqrt(s) + epsilon)
        if penalized:
            w = fma(minus_decay, w, w)
        store_up_to(V, parameter + offset, fma(minus_rate, u, w), count)

    return begin, apply


def update(V: Lanes, name: str) -> Callable[..., None]:
    """A whole flat gradient; the job is a FLAT_UPDATE record."""
    (begin, apply), lanes, size, PARAMETERS = rule(V, name), V.lanes, V.itemsize, offset(FLAT_UPDATE, "update")

    def update(job: int, scratch: int, step: int, item: int) -> None:
        p, begun = record(FLAT_UPDATE, job), begin(job + PARAMETERS)
        gradient, length = p.gradient, p.length
        for i in range(item * BLOCK, min((item + 1) * BLOCK, length), lanes):
            count = min(lanes, length - i)
            apply(begun, i * size, load_up_to(V, gradient + i * size, count), count)

    return update
