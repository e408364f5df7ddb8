"""One dC/dw unfolded into numbers: a_i * delta_o, and delta_o by its largest terms down to the output layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .checks import count

if TYPE_CHECKING:
    from .trace import Trace


@dataclass(frozen=True)
class Term:
    """w_ok * delta_k: what reaches the unit from unit k of the layer above."""

    unit: int
    weight: float
    delta: float

    @property
    def value(self) -> float:
        return self.weight * self.delta


@dataclass(frozen=True)
class Delta:
    """delta of a unit of a hidden layer = gain * (sum of terms + rest), where `others` terms of the sum make the rest.

    share: what part of the sum of magnitudes, sum_k |w_ok delta_k|, the terms carry.
    """

    layer: int
    unit: int
    value: float
    gain: float
    terms: tuple[Term, ...]
    rest: float
    others: int
    share: float

    def __str__(self) -> str:
        l, o, total = self.layer, self.unit, sum(t.value for t in self.terms) + self.rest
        lines = [
            f"delta[{l}][{o}] = f'(z) * sum_k w[{o}, k] delta[{l + 1}][k] = {self.gain:.4g} * {total:.4g} = {self.value:.4g}"
        ]
        lines += [f"    k = {t.unit:<6}{t.weight:11.4g} * {t.delta:<11.4g}= {t.value:.4g}" for t in self.terms]
        if self.others:
            lines.append(
                f"    and {others(self.others)} = {self.rest:.4g}; those above carry {self.share:.1%} of the magnitude"
            )
        return "\n".join(lines)


@dataclass(frozen=True)
class OutputDelta:
    """delta of an output unit, where the backward pass starts: scale * dC/dz, from a = f(z) and the target y."""

    layer: int
    unit: int
    value: float
    a: float
    y: float
    scale: float
    slope: float  # dC/da, or for the two cross-entropies dC/dz, in which f'(z) cancels
    gain: float | None  # f'(z), if it has not cancelled
    formula: str

    def __str__(self) -> str:
        numbers = f"{self.scale:.4g} * {self.slope:.4g}" + ("" if self.gain is None else f" * {self.gain:.4g}")
        left = f"delta[{self.layer}][{self.unit}]"
        return f"{left} = {self.formula} = {numbers} = {self.value:.4g}   (a = {self.a:.4g}, y = {self.y:.4g})"


@dataclass(frozen=True)
class Explanation:
    """dC/dw = a * delta of one weight and one example; `steps` goes from its layer down to the output layer."""

    layer: int
    i: int
    o: int
    a: float
    delta: float
    steps: tuple[Delta | OutputDelta, ...]

    @property
    def gradient(self) -> float:
        return self.a * self.delta

    def __str__(self) -> str:
        l, i, o = self.layer, self.i, self.o
        first = f"dC/dw[{l}][{i}, {o}] = a[{l}][{i}] * delta[{l}][{o}] = {self.a:.4g} * {self.delta:.4g} = {self.gradient:.4g}"
        return "\n".join([first, *map(str, self.steps)])

    __repr__ = __str__


def others(number: int) -> str:
    return "1 other" if number == 1 else f"{number} others"


_SLOPES: dict[str, tuple[str, Callable[[float, float], float]]] = {
    "squared_error": ("(a - y)", lambda a, y: a - y),
    "absolute_error": ("sign(a - y)", lambda a, y: float(np.sign(a - y))),
    "huber": ("clip(a - y, -1, 1)", lambda a, y: min(max(a - y, -1.0), 1.0)),
}


@np.errstate(all="ignore")  # numbers of a training that went astray are shown as they are
def explain(trace: Trace, layer: int, i: int, o: int, *, example: int, terms: int) -> Explanation:
    """See Trace.explain."""
    count("terms", terms)
    example = check_index(len(trace.losses), example, "examples")
    layer = check_index(len(trace.weights), layer, "layers")
    i = check_index(trace.layers[layer], i, f"inputs of layer {layer}")
    o = check_index(trace.layers[layer + 1], o, f"units of layer {layer}")
    steps: list[Delta | OutputDelta] = []
    reach = {o: 1.0}  # unit: d delta_o / d its delta, along the paths shown
    for l in range(layer, len(trace.weights) - 1):
        above: dict[int, float] = {}
        for unit, factor in reach.items():
            step = hidden(trace, l, unit, example, terms)
            steps.append(step)
            for term in step.terms:
                above[term.unit] = above.get(term.unit, 0.0) + factor * step.gain * term.weight
        through = {k: abs(factor * trace.delta[l + 1][example, k]) for k, factor in above.items()}
        reach = {k: above[k] for k in sorted(through, key=lambda k: -through[k])[:terms]}
    steps += [output(trace, unit, example) for unit in reach]
    a, delta = float(trace.a[layer][example, i]), float(trace.delta[layer][example, o])
    return Explanation(layer, i, o, a, delta, tuple(steps))


def hidden(trace: Trace, l: int, unit: int, example: int, terms: int) -> Delta:
    w, delta = trace.weights[l + 1][unit].astype(np.float64), trace.delta[l + 1][example].astype(np.float64)
    products = w * delta
    largest = np.argsort(-abs(products), kind="stable")[:terms]
    left = np.delete(products, largest)
    return Delta(
        l, unit, float(trace.delta[l][example, unit]), float(trace.gain[l][example, unit]),
        tuple(Term(int(k), float(w[k]), float(delta[k])) for k in largest), float(left.sum()), len(left),
        float(abs(products[largest]).sum() / (abs(products).sum() or 1.0)),
    )  # fmt: skip


def output(trace: Trace, unit: int, example: int) -> OutputDelta:
    l = len(trace.weights) - 1
    a, y, scale = float(trace.a[-1][example, unit]), float(trace.y[example, unit]), float(trace.scale[example])
    value = float(trace.delta[l][example, unit])
    if trace.loss_name in _SLOPES:
        formula, slope = _SLOPES[trace.loss_name]
        gain = float(trace.gain[l][example, unit])
        return OutputDelta(l, unit, value, a, y, scale, slope(a, y), gain, f"scale * {formula} * f'(z)")
    return OutputDelta(l, unit, value, a, y, scale, a - y, None, "scale * (a - y)")


def check_index(length: int, index: int, what: str) -> int:
    """A place counted from 0, or from the end if it is negative.  IndexError: there is none."""
    if not isinstance(index, (int, np.integer)) or not -length <= index < length:
        things, _, where = what.partition(" of ")
        there = f"are {length} {what}" if length != 1 else f"is 1 {things[:-1]}" + (f" of {where}" if where else "")
        raise IndexError(f"there {there}, counted from 0; got {index!r}")
    return range(length)[index]
