"""One self-contained page of both passes: the forward network and the reversed one, step by step (page.html with its data)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .explain import check_index, output
from .reference import C

if TYPE_CHECKING:
    from .trace import HostArray, Trace

UNITS = 10  # of a layer at most that are shown
PATHS = 8  # of the sum over paths that are written out
_TEMPLATE = Path(__file__).with_name("page.html")


def page(trace: Trace, example: int = 0) -> str:
    """The page of one example as HTML.  IndexError: no such example; ValueError: its numbers are not finite."""
    example = check_index(len(trace.losses), example, "examples")
    _check_finite(trace, example)
    # "</" would end the script element that holds the data
    data = json.dumps(content(trace, example), allow_nan=False).replace("</", "<\\/")
    return _TEMPLATE.read_text(encoding="utf-8").replace("DATA", data, 1)


def content(trace: Trace, example: int) -> dict[str, Any]:
    """What the page shows: of each layer the units of the largest paths, then those through which most of the gradient runs."""
    a, z, gain, delta = (
        [array[example].astype(np.float64) for array in arrays] for arrays in (trace.a, trace.z, trace.gain, trace.delta)
    )
    weights, y = [W.astype(np.float64) for W in trace.weights], trace.y[example].astype(np.float64)
    slopes = [W @ d for W, d in zip(weights, delta, strict=True)]  # dC/da of each layer, the input first
    through = [abs(x * slope) for x, slope in zip(a[:-1], slopes, strict=True)] + [abs(delta[-1])]
    paths = _paths(a, gain, weights, delta)
    units = []
    for c, t in enumerate(through):
        order = [*(path[c] for path in paths), *np.argsort(-t, kind="stable").tolist()]
        units.append(np.sort(list(dict.fromkeys(order))[:UNITS]))
    i, o = paths[0][:2]
    outputs = [output(trace, int(k), example) for k in units[-1]]
    gain_used = outputs[0].gain is not None
    formula = outputs[0].formula.split(" * ")[1]
    costs = C[trace.loss_name][0](z[-1][None], a[-1][None], y[None])[0]
    top = z[-1].max()
    softmax = [float(top), float(np.exp(z[-1] - top).sum())] if trace.activations[-1] == "softmax" else None

    def shown(arrays: list[HostArray], of: list[HostArray]) -> list[list[float]]:
        return [array[k].tolist() for array, k in zip(arrays, of, strict=True)]

    return {
        "sizes": list(trace.layers), "activations": list(trace.activations), "loss_name": trace.loss_name,
        "loss": float(trace.losses[example]), "scale": float(trace.scale[example]), "units": [k.tolist() for k in units],
        "full": all(len(k) == size for k, size in zip(units, trace.layers, strict=True)),
        "a": shown(a, units), "z": shown(z, units[1:]),
        "gain": [*shown(gain, units[1 : len(gain) + 1]), *([None] * (len(weights) - len(gain)))],
        "delta": shown(delta, units[1:]), "b": shown([b.astype(np.float64) for b in trace.biases], units[1:]),
        "W": [W[np.ix_(k, m)].tolist() for W, k, m in zip(weights, units[:-1], units[1:], strict=True)],
        "dx": slopes[0][units[0]].tolist(), "slopes": shown(slopes[1:], units[1:-1]),
        "y": [step.y for step in outputs], "slope": [step.slope for step in outputs], "slope_name": formula,
        "gain_used": gain_used, "costs": costs[units[-1]].tolist(), "softmax": softmax,
        "paths": [_product(path, a, gain, weights, delta) for path in paths],
        "path_count": math.prod(trace.layers[2:]), "total": float(a[0][i] * delta[0][o]),
    }  # fmt: skip


def _check_finite(trace: Trace, example: int) -> None:
    """Raise ValueError with the first place, in the order of both passes, where the numbers are not finite."""
    layers = range(len(trace.z))
    places = [(f"z of layer {l}", trace.z[l]) for l in layers] + [("the loss", trace.losses)]
    places += [(f"delta of layer {l}", trace.delta[l]) for l in reversed(layers)]
    for place, array in places:
        if not np.isfinite(array[example]).all():
            raise ValueError(f"{place} is not finite, and the page draws finite numbers only; print the trace to see them all")


def _paths(a: list[HostArray], gain: list[HostArray], weights: list[HostArray], delta: list[HostArray]) -> list[list[int]]:
    """The units of the largest of all paths to the outputs from the weight of layer 0 with the largest dC/dw."""
    best = [abs(delta[-1])]  # of each unit, the largest |product| that the rest of a path can have
    for l in range(len(weights) - 1, 0, -1):
        best.insert(0, abs(gain[l - 1]) * (abs(weights[l]) * best[0]).max(axis=1))
    paths, values = [[int(abs(a[0]).argmax()), int(abs(delta[0]).argmax())]], np.ones(1)
    for l in range(1, len(weights)):
        last = [path[-1] for path in paths]
        longer = (values * abs(gain[l - 1][last]))[:, None] * abs(weights[l][last])
        # kept are the beginnings that can become the largest; with an exact `best` no larger path is lost
        which, units = np.unravel_index(np.argsort(-longer * best[l], axis=None, kind="stable")[:PATHS], longer.shape)
        paths, values = [[*paths[p], int(k)] for p, k in zip(which, units, strict=True)], longer[which, units]
    return paths


def _product(
    path: list[int], a: list[HostArray], gain: list[HostArray], weights: list[HostArray], delta: list[HostArray]
) -> dict[str, Any]:
    """Chain rule case 1, dC/dw along one path: a_i f'(z_o) w_ok f'(z_k) ... delta of the output."""
    factors = [("a", a[0][path[0]])]
    for l in range(1, len(weights)):
        o, k = path[l : l + 2]
        factors += [(f"f'(z{o})", gain[l - 1][o]), (f"w{o},{k}", weights[l][o, k])]
    factors.append(("δ of the output", delta[-1][path[-1]]))
    return {
        "units": path, "value": float(math.prod(value for _, value in factors)),
        "factors": [{"name": name, "value": float(value)} for name, value in factors],
    }  # fmt: skip
