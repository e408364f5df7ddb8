"""How a network is while it learns, by layer: how large delta and dW are, what f'(z) does to them, how far the weights go.

Measured with both passes on some examples after an epoch, whenever the epochs since the last look have cost SHARE times a look.
Both costs are estimates from the sizes, not times, so that a history is the same wherever and however often it is made.  All
units are looked at: dropout is for the steps alone.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from .backend import Array

if TYPE_CHECKING:
    from .epochs import Epochs
    from .fitting import History
    from .mlp import MLP

EXAMPLES = 128  # at most, to look at
SHARE = 33  # a look may cost three percent of the training
# Measured on two cores, in multiply-adds of a step (one for a weight and an example, some 30 ps): a look goes over the weights
# in NumPy, too, and is operation after operation from Python; an example costs a little in each layer, and an epoch 0.3 ms
WEIGHTS, OPERATIONS, LAYER, EPOCH = 64, 20_000_000, 5_000, 10_000_000
SMALL = 0.01  # a unit whose mean |f'(z)| is less is saturated
MANY = 0.5  # of a layer's units, and something is wrong with it
VANISHING = 1e-4  # |delta| of a layer over that of the output layer
FAR = 0.1  # mean |a - y| of outputs that are not right yet


@dataclass(frozen=True)
class Health:
    """One list each, an entry a layer; gain, dead and saturated have none for a softmax output layer.

    epoch      after which epoch of this run, counted from 0
    delta      |delta| = |dL/dz|, of the batch that was looked at
    gradient   |dL/dW|
    gain       mean of |f'(z)| over units and examples
    dead       share of units with f'(z) = 0 for every example that was looked at
    saturated  share of units whose mean |f'(z)| is less than 0.01, the dead ones included
    update     |W - W before the epoch| / |W before the epoch|
    """

    epoch: int
    delta: list[float]
    gradient: list[float]
    gain: list[float]
    dead: list[float]
    saturated: list[float]
    update: list[float]


class Observer:
    """Looks at a network from time to time while it is trained, and says once what is wrong with it.

    What it looks at are the first examples of the epoch; what it has seen and found is in the history.
    """

    def __init__(self, net: MLP, data: Epochs) -> None:
        self.net, self.data, self.examples = net, data, min(data.n, EXAMPLES)

    @staticmethod
    def room(net: MLP, n: int) -> int:
        """Memory that a look takes, with n examples in the data: of both passes, gains and one gradient."""
        gains = sum(net.layers[1:]) * net.dtype.itemsize
        return min(n, EXAMPLES) * (net.passes_bytes + gains) + int(net.theta.nbytes)

    @staticmethod
    def epochs_between(net: MLP, n: int) -> float:
        """Looks, with n examples in the data, for SHARE times what a look costs."""
        layers, size = len(net.weights), int(net.theta.size)
        of_epoch = n * (size + LAYER * layers) + EPOCH
        of_look = (min(n, EXAMPLES) + WEIGHTS) * size + OPERATIONS * (layers + 1)
        return SHARE * of_look / of_epoch

    def due(self, epoch: int, history: History) -> bool:
        """Whether this epoch is one of those after which it looks: a function of how many the network has been trained for, in
        this call of fit and before, so that many short ones are looked at as one long one is."""
        epochs = self.net.epochs_trained - len(history.loss) + epoch + 1  # in all, this one included
        between = self.epochs_between(self.net, self.data.n)
        return int(epochs / between) > int((epochs - 1) / between)

    def look(self, before: Array, history: History) -> None:
        """After an epoch: `before` is theta from before it."""
        epoch = len(history.loss) - 1
        if not self.due(epoch, history):
            return
        with np.errstate(all="ignore"):  # a norm may overflow; then it is infinite
            health, error = self.measure(before, epoch)
        history.health.append(health)
        for kind, sentence in advice(health, self.net, self.examples, error).items():
            if kind not in history.notes:
                history.notes[kind] = sentence
                if kind not in self.net.told:
                    print(f"bpgpu: {sentence}", file=sys.stderr)
                self.net.told.add(kind)

    def measure(self, before: Array, epoch: int) -> tuple[Health, float]:
        """The health, and mean |a - y| of the outputs."""
        net, b, n = self.net, self.net.backend, self.examples
        X, y = self.data.rows(0, n)
        passes = net._passes(X)
        error = 0.0 if y.ndim == 1 else float(abs(b.to_numpy(passes.a[-1]) - b.to_numpy(y)).mean())
        delta, _ = b.output_delta(passes.saved[-1], y, net.loss, net.output_activation, scale=b.asarray(net.scale(n)))
        rev = net.reverse(passes)
        deltas = rev.deltas(delta)
        gradients = [b.to_numpy(b.dense_gradient(x, d)[0]) for x, d in zip(passes.a[:-1], deltas, strict=True)]
        gains = [abs(b.to_numpy(gain)).astype(np.float64) for gain in rev.gains]
        old, new = (net.views(b.to_numpy(theta))[0] for theta in (before, net.theta))
        health = Health(
            epoch,
            delta=[_norm(b.to_numpy(d)) for d in deltas],
            gradient=[_norm(dW) for dW in gradients],
            gain=[float(gain.mean()) for gain in gains],
            dead=[float((gain == 0).all(axis=0).mean()) for gain in gains],
            saturated=[float((gain.mean(axis=0) < SMALL * (1 - 1e-6)).mean()) for gain in gains],  # leaky_relu's is 0.01
            update=[_norm(w - v) / (_norm(v) or 1.0) for v, w in zip(old, new, strict=True)],
        )
        return health, error


def _norm(array: np.ndarray) -> float:
    return float(np.linalg.norm(array))


def advice(health: Health, net: MLP, examples: int, error: float) -> dict[str, str]:
    """kind of trouble: one sentence about the layer that has most of it; error is mean |a - y| of the outputs."""
    found: dict[str, str] = {}
    hidden = len(net.activations)
    dead, saturated = (np.array(shares[:hidden] or [0.0]) for shares in (health.dead, health.saturated))
    if dead.max() >= MANY:
        l = int(dead.argmax())
        found["dead"] = (
            f"layer {l}: {dead[l]:.0%} of its units are dead (f' = 0 for all {examples} examples looked at); "
            "try leaky_relu, a lower learning rate or scaled inputs"
        )
    elif saturated.max() >= MANY:
        l = int(saturated.argmax())
        found["saturated"] = (
            f"layer {l}: {saturated[l]:.0%} of its units have f' < {SMALL:g}; try relu, scaled inputs or another initialisation"
        )
    # the output layer's f' cancels in a cross-entropy; and where outputs are right it may be small
    if not net.loss.endswith("cross_entropy") and (share := health.saturated[-1]) >= MANY and error > FAR:
        found["outputs"] = (
            f"layer {hidden}, the outputs: {share:.0%} of its units have f' < {SMALL:g}, though they are {error:.2g} from y on "
            f"average; scale y to what {net.output_activation} can give, or try output_activation='identity'"
        )
    l = int(np.argmin(health.delta))
    if health.delta[l] < VANISHING * health.delta[-1] and not found:
        found["vanishing"] = (
            f"layer {l}: its delta is {health.delta[l] / health.delta[-1]:.0e} of the output layer's: too little comes back "
            "through the layers above; try relu or fewer layers"
        )
    return found
