"""Initial weights (i, o) of a layer: chosen so that z and delta keep their size from layer to layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np

from .checks import nearest
from .random import WEIGHTS, generator, normal, uniform

Initializer: TypeAlias = Callable[
    [tuple[int, int], np.random.Generator], Any
]  # one's own: the shape (i, o) and numbers at random

# the variance, as numerator and denominator, from the numbers of inputs and outputs
VARIANCES: dict[str, Callable[[int, int], tuple[int, int]]] = {
    "glorot": lambda i, o: (2, i + o),  # Glorot and Bengio, AISTATS 2010
    "he": lambda i, o: (2, i),  # He et al., ICCV 2015: for the relu family
    "lecun": lambda i, o: (1, i),  # LeCun et al., Efficient BackProp, 1998; for selu: Klambauer et al., NIPS 2017
}
NAMES = ("auto", *(f"{name}_{kind}" for name in VARIANCES for kind in ("uniform", "normal")), "orthogonal")
_AUTO = dict.fromkeys(("relu", "leaky_relu", "elu", "gelu", "silu"), "he_uniform") | {"selu": "lecun_uniform"}


def check(initializer: Any) -> str | Initializer:
    return initializer if callable(initializer) else nearest(initializer, NAMES, "initializer")


def weights(
    initializer: str | Initializer, activation: str, seed: int, layer: int, shape: tuple[int, int], dtype: np.dtype[Any]
) -> np.ndarray[Any, Any]:
    """The initial weights of a layer in front of an activation.

    "auto" is he_uniform for the relu family, lecun_uniform for selu, otherwise glorot_uniform.  "orthogonal" (Saxe et al.,
    ICLR 2014) has orthonormal rows or columns, of numbers that depend, in their last bits, on NumPy's LAPACK; all other names
    give the same bits on any machine.  ValueError: one's own function gives another shape, or numbers that are not finite.
    """
    if callable(initializer):
        given = np.asarray(initializer(shape, generator(seed, WEIGHTS + layer)), dtype)
        if given.shape != shape or not np.isfinite(given).all():
            raise ValueError(f"the initializer gave an array of shape {given.shape} for layer {layer}; expected finite {shape}")
        return given
    name = _AUTO.get(activation, "glorot_uniform") if initializer == "auto" else initializer
    if name == "orthogonal":
        square = normal(seed, WEIGHTS + layer, (max(shape), min(shape)), 1.0, np.float64)
        Q, R = np.linalg.qr(square)
        Q = Q * np.where(np.diag(R) < 0, -1, 1)  # so that it is uniformly distributed (Mezzadri, 2007)
        return np.ascontiguousarray(Q if shape[0] >= shape[1] else Q.T, dtype)
    family, kind = name.split("_")
    c, fan = VARIANCES[family](*shape)
    if kind == "normal":
        return normal(seed, WEIGHTS + layer, shape, math.sqrt(c / fan), dtype)
    return uniform(seed, WEIGHTS + layer, shape, math.sqrt(3 * c / fan), dtype)
