"""Gradient descent and its relatives: the numbers that rule an update; kernels/update.py is the update itself."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt


class SGD:
    """Gradient descent:  v <- momentum v + (g + weight_decay w),  w <- w - learning_rate v.

    With nesterov, w <- w - learning_rate ((g + weight_decay w) + momentum v).  Weight decay (an L2 penalty of
    weight_decay / 2 |w|^2) is for the weights, not for the biases.  The attributes may be changed between calls of
    train_step or fit.  The velocity belongs to one network and this object, and lives as long as both.

    ValueError: a negative or non-finite number, momentum of 1 or more, nesterov without momentum.
    """

    def __init__(
        self, learning_rate: float = 0.05, momentum: float = 0.0, *, nesterov: bool = False, weight_decay: float = 0.0
    ) -> None:
        self.learning_rate, self.momentum = learning_rate, momentum
        self.nesterov, self.weight_decay = nesterov, weight_decay
        self.check()

    def check(self) -> None:
        for name in ("learning_rate", "momentum", "weight_decay"):
            value = getattr(self, name)
            if not isinstance(value, (int, float, np.number)) or not math.isfinite(value) or value < 0:
                raise ValueError(f"{name} is {value!r}; expected a finite number, 0 or more")
        if self.momentum >= 1:
            raise ValueError(f"momentum is {self.momentum!r}; expected less than 1, for example 0.9")
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum; pass for example momentum=0.9")

    @property
    def rule(self) -> str:
        """The name of the update in kernels/update.py."""
        return "nesterov" if self.nesterov else "momentum" if self.momentum else "sgd"

    def hyper(self, dtype: npt.DTypeLike) -> np.ndarray:
        """[learning rate, momentum, weight decay] for the weights and for the biases, after a check."""
        self.check()
        for name in ("learning_rate", "weight_decay"):
            if (value := getattr(self, name)) > float(np.finfo(dtype).max):
                raise ValueError(f"{name} is {value!r}, too large for {np.dtype(dtype)}; expected a smaller number")
        return np.array([[self.learning_rate, self.momentum, decay] for decay in (self.weight_decay, 0.0)], dtype)

    def __repr__(self) -> str:
        return (
            f"SGD(learning_rate={self.learning_rate}, momentum={self.momentum}, nesterov={self.nesterov}, "
            f"weight_decay={self.weight_decay})"
        )
