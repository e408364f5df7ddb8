"""One self-contained page of both passes: the forward network and the reversed one, step by step (page.html with its data)."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .explain import output

if TYPE_CHECKING:
    from .trace import HostArray, Trace

UNITS = 10  # of a layer at most that are shown
PATHS = 8  # of the sum over paths that are written out
_TEMPLATE = Path(__file__).with_name("page.html")


def page(trace: Trace, example: int = 0) -> str:
    """The page of one example as HTML.  IndexError: no such example."""
    example = range(len(trace.losses))[example]
    # "</" would end the script element that holds the data
    data = json.dumps(content(trace, example), allow_nan=False).replace("</", "<\\/")
    return _TEMPLATE.read_text(encoding="utf-8").replace("DATA", data, 1)


def content(trace: Trace, example: int) -> dict[str, Any]:
    """What the page shows, cut down to the units of each layer through which most of the gradient runs."""
    a, delta = ([array[example].astype(np.float64) for array in arrays] for arrays in (trace.a, trace.delta))
    gain = [array[example].astype(np.float64) for array in trace.gain]
    weights = [W.astype(np.float64) for W in trace.weights]
    slopes = [W @ d for W, d in zip(weights, delta, strict=True)]  # dC/da of each layer, the input first
    through = [abs(x * slope) for x, slope in zip(a[:-1], slopes, strict=True)] + [abs(delta[-1])]
    units = [np.sort(np.argsort(-t, kind="stable")[:UNITS]) for t in through]
    paths = _paths(a, gain, weights, delta, units)
    i, o = paths[0]["units"][:2]
    outputs = [output(trace, int(k), example) for k in units[-1]]
    gain_used = outputs[0].gain is not None
    formula = outputs[0].formula.split(" * ")[1]

    def shown(arrays: list[HostArray], of: list[HostArray]) -> list[list[float]]:
        return [array[k].tolist() for array, k in zip(arrays, of, strict=True)]

    return {
        "sizes": list(trace.layers), "activations": list(trace.activations), "loss_name": trace.loss_name,
        "loss": float(trace.losses[example]), "scale": float(trace.scale[example]), "units": [k.tolist() for k in units],
        "full": all(len(k) == size for k, size in zip(units, trace.layers, strict=True)),
        "a": shown(a, units), "z": shown([z[example].astype(np.float64) for z in trace.z], units[1:]),
        "gain": [*shown(gain, units[1 : len(gain) + 1]), *([None] * (len(weights) - len(gain)))],
        "delta": shown(delta, units[1:]), "b": shown([b.astype(np.float64) for b in trace.biases], units[1:]),
        "W": [W[np.ix_(k, m)].tolist() for W, k, m in zip(weights, units[:-1], units[1:], strict=True)],
        "dx": slopes[0][units[0]].tolist(), "slopes": shown(slopes[1:], units[1:-1]),
        "y": [step.y for step in outputs], "slope": [step.slope for step in outputs], "slope_name": formula,
        "gain_used": gain_used, "paths": paths, "path_count": math.prod(trace.layers[2:]),
        "total": float(a[0][i] * delta[0][o]),
    }  # fmt: skip


def _paths(
    a: list[HostArray], gain: list[HostArray], weights: list[HostArray], delta: list[HostArray], units: list[HostArray]
) -> list[dict[str, Any]]:
    """The largest paths from the weight of layer 0 with the largest dC/dw to the outputs, of those among the units shown.

    A path's product is a_i f'(z_o) w_ok f'(z_k) ... delta of the output: chain rule case 1; dC/dw is the sum of all: case 2.
    """
    products = abs(np.outer(a[0][units[0]], delta[0][units[1]]))
    row, column = np.unravel_index(int(products.argmax()), products.shape)
    i, o = int(units[0][row]), int(units[1][column])
    paths: list[tuple[float, list[int], list[dict[str, Any]]]] = [(float(a[0][i]), [i, o], [])]
    for l in range(1, len(weights)):
        longer = []
        for value, path, factors in paths:
            f = float(gain[l - 1][path[-1]])
            for k in units[l + 1]:
                w = float(weights[l][path[-1], k])
                more = [{"name": f"f'(z{path[-1]})", "value": f}, {"name": f"w{path[-1]},{k}", "value": w}]
                longer.append((value * f * w, [*path, int(k)], factors + more))
        longer.sort(key=lambda p, l=l: -abs(p[0] * delta[l][p[1][-1]]))  # type: ignore[misc]
        paths = longer[: PATHS if l == len(weights) - 1 else 8 * PATHS]
    return [
        {
            "units": path, "a": float(a[0][i]), "value": value * float(delta[-1][path[-1]]),
            "factors": [*factors, {"name": "δ of the output", "value": float(delta[-1][path[-1]])}],
        }
        for value, path, factors in paths
    ]  # fmt: skip
