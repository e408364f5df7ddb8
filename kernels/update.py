"""What becomes of a gradient: it is stored, or it moves the parameters at once.

A rule takes a vector of gradients g and the place of its parameters in an UPDATE record; the states are laid out like the
parameters.  Its numbers are those of names.HYPER; what a class of bpgpu/optim.py wants is said in them alone.

    store      parameter = g
    add        parameter = parameter + g

    every other rule    g = (l2 w + g) + l1 sign(w),  then u, then  w = (w - decay w) - learning_rate u
    sgd        u = g
    momentum   v = beta1 v + gain1 g,  u = v                                                          Polyak (1964)
    nesterov   v as above,  u = beta1 v + gain1 g                                Sutskever et al., ICML 2013
    rmsprop    s = beta2 s + gain2 (g g),  u = g / (sqrt(s) + epsilon)      Hinton (2012); Adagrad: Duchi et al., JMLR 2011
    adam       m = beta1 m + gain1 g,  s as above,  u = m / (sqrt(s) + epsilon)        Kingma and Ba, ICLR 2015

Every a b + c, c + a b and c - a b above is one fma, the inner one first.  sign(0) = 0.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .machine import GRAIN, Lanes
from .names import HYPER, RULES
from .records import FLAT_UPDATE, UPDATE, offset
from .team import record
from .vector import fma, load_splat, load_up_to, njit, select, sqrt, store_up_to

BLOCK = GRAIN["update"]


def rule(V: Lanes, name: str) -> Any:
    """apply(update record's address, offset in bytes, g, how many lanes count)."""
    if name in ("store", "add"):
        add = name == "add"

        def store(update: int, offset: int, g: Any, count: int) -> None:
            address = record(UPDATE, update).parameter + offset
            store_up_to(V, address, load_up_to(V, address, count) + g if add else g, count)

        return njit(store)

    LEARNING_RATE, L2, L1, DECAY, BETA1, GAIN1, BETA2, GAIN2, EPSILON = (i * V.itemsize for i in range(len(HYPER)))
    averages, squares, nesterov = (
        "velocity" in RULES[name] or "mean" in RULES[name],
        "square" in RULES[name],
        name == "nesterov",
    )

    def apply(update: int, offset: int, g: Any, count: int) -> None:
        p = record(UPDATE, update)
        w = load_up_to(V, p.parameter + offset, count)
        l1 = load_splat(V, p.hyper + L1)
        g = fma(load_splat(V, p.hyper + L2), w, g) + select(w > 0.0, l1, select(w < 0.0, -l1, 0.0))
        u = g
        if averages:
            beta, scaled = load_splat(V, p.hyper + BETA1), load_splat(V, p.hyper + GAIN1) * g
            v = fma(beta, load_up_to(V, p.state1 + offset, count), scaled)
            store_up_to(V, p.state1 + offset, v, count)
            u = fma(beta, v, scaled) if nesterov else v
        if squares:
            at = (p.state2 if averages else p.state1) + offset
            scaled = load_splat(V, p.hyper + GAIN2) * (g * g)
            s = fma(load_splat(V, p.hyper + BETA2), load_up_to(V, at, count), scaled)
            store_up_to(V, at, s, count)
            u = u / (sqrt(s) + load_splat(V, p.hyper + EPSILON))
        kept = fma(-load_splat(V, p.hyper + DECAY), w, w)
        store_up_to(V, p.parameter + offset, fma(-load_splat(V, p.hyper + LEARNING_RATE), u, kept), count)

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
