"""Pictures of a training and of a network, with matplotlib (the extra `plots`); every function takes and returns Axes.

ImportError: no Axes are given and matplotlib is not installed.  TypeError: what is given as a history is none.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from . import checks

if TYPE_CHECKING:
    from .fitting import History
    from .mlp import MLP


def losses(history: History, ax: Any = None) -> Any:
    """Training and validation loss over the epochs, the best epoch marked."""
    history, ax = _checked(history), _axes(ax)
    epochs = np.arange(1, len(history.loss) + 1)
    ax.plot(epochs, history.loss, label="training")
    if history.validation_loss:
        ax.plot(epochs[: len(history.validation_loss)], history.validation_loss, label="validation")
    if history.best_epoch is not None:
        ax.axvline(history.best_epoch + 1, color="grey", linestyle=":", label="best epoch")
    return _finished(ax, "epoch", "loss")


def gradient_flow(history: History, ax: Any = None) -> Any:
    """|delta| (lines) and |dW| (dashed) of each layer over time, on a logarithmic scale.

    ValueError: the history has no entry of health.
    """
    ax = _by_layer(history, "delta", ax, "|δ| layer {}")
    ax.set_prop_cycle(None)  # dashed lines in the colours of their layers
    return _finished(_by_layer(history, "gradient", ax, "|dW| layer {}", linestyle="--"), "epoch", "norm", log=True)


def saturation(history: History, ax: Any = None) -> Any:
    """Share of each layer's units that are saturated (lines) and dead (dashed) over time.

    ValueError: the history has no entry of health.
    """
    ax = _by_layer(history, "saturated", ax, "saturated, layer {}")
    ax.set_prop_cycle(None)
    ax = _finished(_by_layer(history, "dead", ax, "dead, layer {}", linestyle="--"), "epoch", "share of units")
    ax.set_ylim(-0.02, 1.02)
    return ax


def update_ratios(history: History, ax: Any = None) -> Any:
    """How far each layer's weights went in an epoch, over their length, on a logarithmic scale.

    ValueError: the history has no entry of health.
    """
    return _finished(_by_layer(history, "update", ax, "layer {}"), "epoch", "|ΔW| / |W|", log=True)


def filters(net: MLP, ax: Any = None, *, shape: tuple[int, int] | None = None, count: int = 64) -> Any:
    """The weights into each of the first `count` units of the first layer as images of `shape`, side by side.

    shape: rows and columns of an input, a square unless it is given.  ValueError: the inputs are no such image, or count is
    no positive integer.
    """
    inputs, count = net.layers[0], checks.count("count", count)
    rows, columns = shape or (math.isqrt(inputs), math.isqrt(inputs))
    if rows * columns != inputs:
        raise ValueError(f"{inputs} inputs are no image of {rows} x {columns}; pass shape=(rows, columns)")
    W = net.backend.to_numpy(net.weights[0])[:, :count].T
    across = math.ceil(math.sqrt(len(W)))
    down = -(-len(W) // across)
    mosaic = np.full((down * (rows + 1) - 1, across * (columns + 1) - 1), np.nan)
    for k, w in enumerate(W):
        r, c = k // across * (rows + 1), k % across * (columns + 1)
        mosaic[r : r + rows, c : c + columns] = w.reshape(rows, columns)
    ax, limit = _axes(ax), float(abs(W).max())
    ax.imshow(mosaic, cmap="RdBu", vmin=-limit, vmax=limit)
    ax.set_axis_off()
    return ax


def _checked(history: History) -> History:
    """TypeError: it is no history."""
    if not hasattr(history, "health"):
        raise TypeError(f"history is a {type(history).__name__}; expected what fit gives: history = net.fit(X, y)")
    return history


def _axes(ax: Any) -> Any:
    if ax is not None:
        return ax
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError("bpgpu.plots needs matplotlib: python -m pip install 'bpgpu[plots]'") from error
    return plt.figure().add_subplot()


def _by_layer(history: History, name: str, ax: Any, label: str, **style: Any) -> Any:
    """A line a layer of what history.health says."""
    if not _checked(history).health:
        raise ValueError("the history has no entry of health: fit looks at a network now and then, this training was too short")
    ax, epochs = _axes(ax), [health.epoch + 1 for health in history.health]
    for l, values in enumerate(zip(*(getattr(health, name) for health in history.health), strict=True)):
        ax.plot(epochs, values, label=label.format(l), marker=".", **style)
    return ax


def _finished(ax: Any, x: str, y: str, *, log: bool = False) -> Any:
    ax.set_xlabel(x)
    ax.set_ylabel(y)
    if log and any((np.asarray(line.get_ydata(), float) > 0).any() for line in ax.get_lines()):
        ax.set_yscale("log")
    if ax.get_lines():
        ax.legend(fontsize="small")
    return ax
