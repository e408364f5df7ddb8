"""What a training makes of its labels: soft targets, and weights by class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from .backend import Array
from .checks import amount, as_weights, nearest
from .shapes import OUTPUTS

if TYPE_CHECKING:
    from .mlp import MLP

CLASSIFIES = tuple(OUTPUTS)


def smoothed(net: MLP, targets: Array, smoothing: float) -> Array:
    """Targets (1 - smoothing) y + smoothing / classes   (Szegedy et al., CVPR 2016)."""
    if net.loss not in CLASSIFIES:
        raise ValueError(f"label_smoothing is for cross_entropy and binary_cross_entropy, not for {net.loss}")
    if amount("label_smoothing", smoothing) >= 1:
        raise ValueError(f"label_smoothing is {smoothing!r}; expected less than 1, for example 0.1")
    classes = net.layers[-1] if net.loss == "cross_entropy" else 2
    rows = net.one_hot(targets, classes) if targets.ndim == 1 else targets
    return ((1 - smoothing) * rows + smoothing / classes).astype(net.dtype)


def class_weights(net: MLP, targets: Array, given: Any) -> np.ndarray[Any, Any]:
    """The weight of each example by its class: {label: weight} (1 for others), a weight for each class, or "balanced",
    n / (classes n_c)   (King and Zeng, 2001)."""
    if net.loss not in CLASSIFIES or (net.loss == "binary_cross_entropy" and targets.shape[1] > 1):
        raise ValueError(
            "class_weight needs one label for each example: cross_entropy, or binary_cross_entropy with one output"
        )
    classes = net.layers[-1] if net.loss == "cross_entropy" else 2
    targets = net.backend.to_numpy(targets)
    labels = (
        targets if targets.ndim == 1 else targets.argmax(axis=1) if targets.shape[1] > 1 else targets[:, 0].round().astype(int)
    )
    if isinstance(given, str):
        nearest(given, ("balanced",), "class_weight")
        counts = np.bincount(labels, minlength=classes)
        weights = len(labels) / (np.count_nonzero(counts) * np.maximum(counts, 1))
    elif isinstance(given, Mapping):
        weights = np.ones(classes)
        for label, weight in given.items():
            if not isinstance(label, (int, np.integer)) or not 0 <= label < classes:
                raise ValueError(f"class_weight has a weight for {label!r}; expected labels in 0..{classes - 1}")
            weights[label] = amount(f"class_weight[{label}]", weight)
    else:
        if np.shape(given) != (classes,):
            raise ValueError(f"class_weight has shape {np.shape(given)}; expected one weight for each of {classes} classes")
        weights = as_weights(given, n=classes, dtype=np.float64, name="class_weight")
    return np.asarray(weights[labels])
