"""Everything that backpropagation computes of some examples, on the host, to be looked at: z, a, f'(z), delta, dC/dw."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from .checks import check_matrix, check_memory, count, nearest
from .explain import Explanation, check_index, explain, others
from .files import write_whole
from .page import page

if TYPE_CHECKING:
    from .mlp import MLP

HostArray = np.ndarray[Any, Any]


@dataclass(frozen=True, repr=False, eq=False)
class Trace:
    """Both passes of n examples.  Layer l = 0 .. L-1 takes a[l] to a[l+1]; it stays as it is when the network goes on learning.

    a[l] (n, units)          a[0] is x, a[L] is the output
    z[l], delta[l]           (n, units of layer l): z = a[l] weights[l] + biases[l], delta = dL/dz
    gain[l]                  (n, units) f'(z); for softmax outputs none: there delta = scale (a - y)
    dW[l] (i, o), db[l] (o)  dL/dW = a[l]^T delta[l], dL/db, summed over the examples
    losses (n), loss         scale C^n of each example, and L, their sum; scale (n) is 1/n or 1 (the reduction)
    y (n, outputs)           the targets, labels as rows of 0 and one 1
    """

    layers: tuple[int, ...]
    activations: tuple[str, ...]  # of every layer, the output's included
    loss_name: str
    loss: float
    losses: HostArray
    scale: HostArray
    y: HostArray
    a: list[HostArray]
    z: list[HostArray]
    gain: list[HostArray]
    delta: list[HostArray]
    weights: list[HostArray]
    biases: list[HostArray]
    dW: list[HostArray]
    db: list[HostArray]

    def explain(self, layer: int, i: int, o: int, *, example: int = 0, terms: int = 4) -> Explanation:
        """dC/dw of weights[layer][i, o] unfolded: a_i * delta_o, and delta_o down to the output layer.

        Each sum shows its `terms` largest terms, what the others add up to, and the share of the magnitude they carry; in
        each layer the `terms` units are followed through which most of it runs.  IndexError: no such layer, unit or example.
        """
        return explain(self, layer, i, o, example=example, terms=terms)

    @np.errstate(all="ignore")  # numbers of a training that went astray are shown as they are
    def table(self, example: int = 0, units: int = 8) -> str:
        """A table of one example, in each layer the `units` units of largest |delta|.  IndexError: no such example."""
        example = check_index(len(self.losses), example, "examples")
        units = count("units", units)
        many = f" {example} of {len(self.losses)}" if len(self.losses) > 1 else ""
        kinds = "-".join(map(str, self.layers))
        lines = [f"example{many} through {kinds}, {self.loss_name}: loss {self.losses[example]:.6g}"]
        for l, (z, delta) in enumerate(zip(self.z, self.delta, strict=True)):
            d = delta[example].astype(np.float64)
            shown = np.sort(np.argsort(-abs(d), kind="stable")[:units])
            i, o = np.unravel_index(int(abs(self.dW[l]).argmax()), self.dW[l].shape)
            lines += ["", f"layer {l}: {self.layers[l]} -> {len(d)} {self.activations[l]}"]
            lines.append("    unit           z           a       f'(z)       delta")
            for k in shown:
                gain = f"{self.gain[l][example, k]:12.4g}" if l < len(self.gain) else f"{'-':>12}"
                lines.append(f"{k:8}{z[example, k]:12.4g}{self.a[l + 1][example, k]:12.4g}{gain}{d[k]:12.4g}")
            if len(shown) < len(d):
                share = abs(d[shown]).sum() / (abs(d).sum() or 1)
                lines.append(f"     and {others(len(d) - len(shown))}; those shown carry {share:.1%} of the sum of |delta|")
            lines.append(
                f"    |dL/dW| = {np.linalg.norm(self.dW[l]):.4g}, its largest dL/dw[{i}, {o}] = {self.dW[l][i, o]:.4g}"
            )
        return "\n".join(lines)

    __repr__ = table

    def to_dict(self) -> dict[str, Any]:
        """{"loss", "losses", "x", "y", "layers"}; layers is a list of {"activation", "z", "a", "gain", "delta", "dW", "db"}.

        The arrays are NumPy's; .tolist() makes lists of them.  gain is None for softmax outputs.
        """
        layers = [
            {
                "activation": self.activations[l], "z": self.z[l], "a": self.a[l + 1],
                "gain": self.gain[l] if l < len(self.gain) else None,
                "delta": self.delta[l], "dW": self.dW[l], "db": self.db[l],
            }
            for l in range(len(self.z))
        ]  # fmt: skip
        return {"loss": self.loss, "losses": self.losses, "x": self.a[0], "y": self.y, "layers": layers}

    def to_frame(self, of: str = "units") -> Any:
        """A pandas DataFrame: of "units" a row for each example, layer and unit, with columns z, a, gain and delta; of
        "weights" a row for each layer, input i and unit o, with columns w and dw (dC/dw, summed over the examples as dW is).

        The loss is in neither: see losses.  ImportError: pandas is not installed (the extra `pandas`).  MemoryError: the
        network has more weights than fit.
        """
        try:
            import pandas as pd
        except ImportError as error:
            raise ImportError("to_frame needs pandas: python -m pip install 'bpgpu[pandas]', or use to_dict()") from error
        if nearest(of, ("units", "weights"), "of") == "weights":
            check_memory(40 * sum(dW.size for dW in self.dW), "a row for each weight", "use to_dict() or trace.dW")
        frames = []
        for l, z in enumerate(self.z):
            if of == "weights":
                row, column = divmod(np.arange(self.dW[l].size), self.dW[l].shape[1])
                where = {"layer": np.full(row.size, l), "input": row, "unit": column}
                values = {"w": self.weights[l], "dw": self.dW[l]}
            else:
                row, column = divmod(np.arange(z.size), z.shape[1])
                where = {"example": row, "layer": np.full(row.size, l), "unit": column}
                gain = self.gain[l] if l < len(self.gain) else np.full(z.shape, np.nan, z.dtype)
                values = {"z": z, "a": self.a[l + 1], "gain": gain, "delta": self.delta[l]}
            frames.append(pd.DataFrame(where | {name: array.ravel() for name, array in values.items()}))
        return pd.concat(frames, ignore_index=True)

    def to_html(self, path: str | os.PathLike[str], example: int = 0) -> None:
        """Write one self-contained page that steps through both passes of one example.

        Small layers are shown in full, of large ones the units on the largest paths from the weight with the largest dC/dw of
        layer 0 to the outputs, then those through which most of the gradient runs.  OSError: the file cannot be written;
        IndexError: no such example; ValueError: z, delta or the loss is not finite.
        """
        write_whole(path, page(self, example).encode())


def trace(net: MLP, x: Any, y: Any) -> Trace:
    """See MLP.trace."""
    x, y = net.on_host(x, "x"), net.on_host(y, "y")
    if np.ndim(x) == 1:
        x, y = np.asarray(x)[None], np.asarray(y)[None]
    check_matrix(np.shape(x), net.layers[0], "x")
    n = np.shape(x)[0]
    check_memory(
        (4 * n * sum(net.layers) + 2 * net.theta.size) * net.dtype.itemsize,
        f"the trace of {n:,} examples", "trace fewer of them, or use forward and backward",
    )  # fmt: skip
    host = net.backend.to_numpy
    passes = net.forward(x)
    back = net.backward(passes, y)
    target = net.targets(y, n)
    weights, biases = net.views(host(net.theta).copy())
    if target.ndim == 1:
        target = np.eye(net.layers[-1], dtype=net.dtype)[target]
    return Trace(
        layers=net.layers, activations=(*net.activations, net.output_activation), loss_name=net.loss,
        loss=back.loss, losses=host(back.losses), scale=np.broadcast_to(net.scale(n), (n,)), y=target,
        a=[host(a) for a in passes.a], z=[host(passes.z(l)) for l in range(len(weights))],
        gain=[host(gain) for gain in net.reverse(passes).gains], delta=[host(delta) for delta in back.delta],
        weights=weights, biases=biases, dW=[host(dW) for dW in back.dW], db=[host(db) for db in back.db],
    )  # fmt: skip
