"""The output layer, where the backward pass starts:  dZ = scale * dC/dz  and the losses  scale * C^n,  n = 1..N.

Softmax with cross-entropy, from z (so that nothing overflows), m = max z, e_o = exp(z_o - m), s = sum_o e_o:

    a_o = e_o / s      C = sum_o y_o (ln s - (z_o - m))      dC/dz_o = a_o - y_o

y is a row of probabilities, or a label.  For the other losses (losses.py) a = f(z) and C is a sum over the outputs.  Sums
over o are in chunks of CHUNK, ascending.  `scale` is 1/N, 1, or the example's weight over the sum of weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

from .activations import activation
from .functions import functions
from .losses import elementwise
from .machine import CHUNK, ROWS, Lanes
from .names import SAVES_Z
from .records import ACTIVATE, OUTPUT, TOTAL
from .team import record
from .vector import load_label, load_splat, load_up_to, njit, select, store_first, store_up_to


@cache
def _sum(V: Lanes) -> Any:
    size = V.itemsize

    @njit
    def ordered_sum(address: int, length: int) -> Any:
        """The sum of `length` >= 1 numbers, in every lane."""
        total = load_splat(V, address)
        for start in range(0, length, CHUNK):
            chunk = load_splat(V, address + start * size)
            for i in range(start + 1, min(start + CHUNK, length)):
                chunk = chunk + load_splat(V, address + i * size)
            total = total + chunk if start > 0 else chunk
        return total

    return ordered_sum


@cache
def _exponentials(V: Lanes) -> Any:
    exp, ordered_sum, lanes, size = functions(V).exp, _sum(V), V.lanes, V.itemsize

    @njit
    def exponentials(Z: int, columns: int, target: int) -> Any:
        """Write exp(z - m) for one row; return m and the sum, in every lane."""
        m = load_splat(V, Z)
        for o in range(1, columns):
            z = load_splat(V, Z + o * size)
            m = select(z > m, z, m)
        for o in range(0, columns, lanes):
            count = min(lanes, columns - o)
            store_up_to(V, target + o * size, exp(load_up_to(V, Z + o * size, count) - m), count)
        return m, ordered_sum(target, columns)

    return exponentials


def activate(V: Lanes, name: str) -> Callable[..., None]:
    """A = f(Z), softmax included; the job is an ACTIVATE record."""
    lanes, size = V.lanes, V.itemsize
    if name == "softmax":
        exponentials = _exponentials(V)

        @njit
        def row(Z: int, columns: int, A: int) -> None:
            _, s = exponentials(Z, columns, A)
            for o in range(0, columns, lanes):
                count = min(lanes, columns - o)
                store_up_to(V, A + o * size, load_up_to(V, A + o * size, count) / s, count)

    else:
        f, _ = activation(V, name)

        @njit
        def row(Z: int, columns: int, A: int) -> None:
            for o in range(0, columns, lanes):
                count = min(lanes, columns - o)
                store_up_to(V, A + o * size, f(load_up_to(V, Z + o * size, count)), count)

    def activate(job: int, scratch: int, step: int, item: int) -> None:
        p = record(ACTIVATE, job)
        for n in range(item * ROWS, min((item + 1) * ROWS, p.rows)):
            row(p.Z + n * p.Z_row, p.columns, p.A + n * p.A_row)

    return activate


def _labels_row(V: Lanes) -> Any:
    F, exponentials, lanes, size = functions(V), _exponentials(V), V.lanes, V.itemsize
    log = F.log

    @njit
    def row(Z: int, columns: int, y: int, scale: Any, dZ: int) -> Any:
        m, s = exponentials(Z, columns, dZ)
        label = load_label(y)
        true = load_splat(V, dZ + label * size) / s
        loss = log(s) - (load_splat(V, Z + label * size) - m)
        for o in range(0, columns, lanes):
            count = min(lanes, columns - o)
            store_up_to(V, dZ + o * size, (load_up_to(V, dZ + o * size, count) / s) * scale, count)
        store_first(dZ + label * size, (true - 1.0) * scale, 1)
        return loss

    return row


def _probabilities_row(V: Lanes) -> Any:
    F, exponentials, ordered_sum, lanes, size = functions(V), _exponentials(V), _sum(V), V.lanes, V.itemsize
    log = F.log

    @njit
    def row(Z: int, columns: int, y: int, scale: Any, dZ: int) -> Any:
        m, s = exponentials(Z, columns, dZ)
        log_s = log(s)
        for o in range(0, columns, lanes):
            count = min(lanes, columns - o)
            terms = load_up_to(V, y + o * size, count) * (log_s - (load_up_to(V, Z + o * size, count) - m))
            store_up_to(V, dZ + o * size, terms, count)
        loss = ordered_sum(dZ, columns)
        exponentials(Z, columns, dZ)
        for o in range(0, columns, lanes):
            count = min(lanes, columns - o)
            a = load_up_to(V, dZ + o * size, count) / s
            store_up_to(V, dZ + o * size, (a - load_up_to(V, y + o * size, count)) * scale, count)
        return loss

    return row


def _elementwise_row(V: Lanes, loss_name: str, activation_name: str) -> Any:
    loss, slope = elementwise(V, loss_name)
    f, gain = activation(V, activation_name)
    ordered_sum, lanes, size, saves_z = _sum(V), V.lanes, V.itemsize, activation_name in SAVES_Z

    @njit
    def row(Z: int, columns: int, y: int, scale: Any, dZ: int) -> Any:
        for o in range(0, columns, lanes):
            count = min(lanes, columns - o)
            z = load_up_to(V, Z + o * size, count)
            store_up_to(V, dZ + o * size, loss(z, f(z), load_up_to(V, y + o * size, count)), count)
        total = ordered_sum(dZ, columns)
        for o in range(0, columns, lanes):
            count = min(lanes, columns - o)
            z = load_up_to(V, Z + o * size, count)
            a = f(z)
            g = gain(z) if saves_z else gain(a)
            delta = slope(z, a, load_up_to(V, y + o * size, count), g) * scale
            store_up_to(V, dZ + o * size, delta, count)
        return total

    return row


def output_delta(V: Lanes, loss: str, activation: str, targets: str) -> Callable[..., None]:
    """The kernel of one loss on one output activation; its job is an OUTPUT record."""
    size = V.itemsize
    if loss == "cross_entropy":
        row = _labels_row(V) if targets == "labels" else _probabilities_row(V)
    else:
        row = _elementwise_row(V, loss, activation)

    def output_delta(job: int, scratch: int, step: int, item: int) -> None:
        p = record(OUTPUT, job)
        for n in range(item * ROWS, min((item + 1) * ROWS, p.rows)):
            scale = load_splat(V, p.scale + n * p.scale_step)
            loss = row(p.Z + n * p.Z_row, p.columns, p.y + n * p.y_row, scale, p.dZ + n * p.dZ_row)
            store_first(p.losses + n * size, loss * scale, 1)

    return output_delta


def total(V: Lanes) -> Callable[..., None]:
    """L = sum_n C^n: the job is a TOTAL record, the sum goes to target[step]."""
    ordered_sum = _sum(V)

    def total(job: int, scratch: int, step: int, item: int) -> None:
        p = record(TOTAL, job)
        store_first(p.target + step * p.target_step, ordered_sum(p.numbers, p.length), 1)

    return total
