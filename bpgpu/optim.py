"""Gradient descent and its relatives: the numbers that rule an update; kernels/update.py is the update itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, fields
from typing import Any, ClassVar, TypeAlias

import numpy as np
import numpy.typing as npt

from .checks import amount
from .kernels.names import HYPER

Schedule: TypeAlias = Callable[[int], float]  # the learning rate of step t = 0, 1, 2, ...
LIMITS = ("clip_norm", "clip_value", "max_norm")
_ATTRIBUTE = {"l2": "weight_decay"}  # what the user calls a number of HYPER, if it is called otherwise
_BELOW_ONE = {"momentum": 0.9, "beta": 0.99, "beta1": 0.9, "beta2": 0.999}  # and what is usual


@dataclass(eq=False)
class Optimizer(ABC):
    """What every optimizer has.  One belongs to as many networks as it is used with; what it keeps for a network (velocity,
    averages, the count t of steps) lives as long as both.  Attributes may be changed between calls of train_step or fit, and
    by a callback at the end of an epoch.

    learning_rate      a number, or a function of t = 0, 1, 2, ... that gives one
    weight_decay       L2: adds weight_decay / 2 |w|^2 to L, that is weight_decay w to the gradient
    l1                 adds l1 |w|_1 to L, that is l1 sign(w) to the gradient
    decoupled          weight decay beside the gradient: w <- (1 - learning_rate weight_decay) w - ...   Loshchilov and Hutter,
                       ICLR 2019
    average_penalties  the penalties are shared out as L's mean is: both divided by the number of examples of the batch (their
                       sum of weights), as scikit-learn's alpha is
    layer_rates        a factor of the learning rate for each layer, from the first to the output; kept as a tuple
    clip_norm          scales a gradient longer than this down to it (Pascanu et al., ICML 2013)
    clip_value         then cuts each of its numbers to [-clip_value, clip_value]
    max_norm           after the step, scales the weights of a unit down to this length (Hinton et al., 2012)

    Penalties are for the weights, not for the biases.

    ValueError: a negative or non-finite number, one too large for the dtype.
    """

    rule: ClassVar[str]  # of kernels/update.py

    learning_rate: float | Schedule
    _: KW_ONLY
    weight_decay: float = 0.0
    l1: float = 0.0
    decoupled: bool = False
    average_penalties: bool = False
    layer_rates: Sequence[float] | None = None
    clip_norm: float | None = None
    clip_value: float | None = None
    max_norm: float | None = None

    def __post_init__(self) -> None:
        self.check()

    def __setattr__(self, name: str, value: Any) -> None:
        value = value.tolist() if isinstance(value, np.ndarray) else value
        if name == "layer_rates" and isinstance(value, list):
            value = tuple(value)  # a change in place would not be noticed
        object.__setattr__(self, name, value)

    def check(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type == "float" or (field.name == "learning_rate" and not callable(value)):
                amount(field.name, value)
                if value >= 1 and field.name in _BELOW_ONE:
                    raise ValueError(f"{field.name} is {value!r}; expected less than 1, for example {_BELOW_ONE[field.name]}")
        if getattr(self, "epsilon", 1) == 0:
            raise ValueError("epsilon is 0; expected a positive number, for example 1e-8")
        for name in LIMITS:
            if (value := getattr(self, name)) is not None and amount(name, value) == 0:
                raise ValueError(f"{name} is 0; expected a positive number, or None")
        if self.layer_rates is not None:
            if not isinstance(self.layer_rates, (list, tuple)):
                raise ValueError(f"layer_rates is {self.layer_rates!r}; expected a list of one factor for each layer")
            for l, factor in enumerate(self.layer_rates):
                amount(f"layer_rates[{l}]", factor)

    @property
    def form(self) -> tuple[Any, ...]:
        """What a recorded step depends on: the rule, and which of the limits there are."""
        return (self.rule, *(getattr(self, name) is not None for name in LIMITS))

    def limits(self, dtype: npt.DTypeLike) -> np.ndarray:
        """clip_norm, clip_value and max_norm (3), infinite where there is none."""
        values = [getattr(self, name) for name in LIMITS]
        return np.array([np.inf if value is None else min(value, np.finfo(dtype).max) for value in values], dtype)

    @property
    def varies(self) -> bool:
        """Whether the numbers of one step differ from those of the next."""
        return callable(self.learning_rate) or self.average_penalties

    def rate(self, step: int) -> float:
        """The learning rate of step t = 0, 1, 2, ..."""
        if not callable(self.learning_rate):
            return float(self.learning_rate)
        return amount(f"learning_rate({step})", self.learning_rate(step))

    def shares(self, examples: Sequence[float]) -> npt.NDArray[np.float64]:
        """What the penalties are divided by in each step, of the size of its batch (or its sum of weights).  Infinite for a
        batch whose weights are all 0: it has no L, and no penalty."""
        share = np.array(examples, np.float64)
        return np.where(share > 0, share, np.inf) if self.average_penalties else np.ones(len(share))

    @abstractmethod
    def numbers(self, rate: npt.NDArray[np.float64], step: npt.NDArray[np.float64]) -> Mapping[str, Any]:
        """The rule's own numbers, by their names in HYPER, for learning rates (steps) and steps t = 1, 2, 3, ..."""

    def hyper(self, dtype: npt.DTypeLike, layers: int, first: int = 0, examples: Sequence[float] = (1,)) -> np.ndarray:
        """All numbers (steps, layers, 2, 9), for weights and biases, of steps t = first, first + 1, ... after a check.

        examples  the size of each step's batch (or its sum of weights), of which average_penalties makes use
        """
        self.check()
        if self.layer_rates is not None and len(self.layer_rates) != layers:
            raise ValueError(f"layer_rates has {len(self.layer_rates)} factors; expected {layers}, one for each layer")
        steps = len(examples)
        rates = [self.rate(t) for t in range(first, first + steps)] if callable(self.learning_rate) else self.rate(0)
        rate = np.array(rates, np.float64)
        share = self.shares(examples)
        table = dict.fromkeys(HYPER, np.zeros(1)) | {"gain1": np.ones(1)}
        table |= self.numbers(rate, np.arange(first + 1, first + steps + 1, dtype=np.float64))
        table = {name: np.reshape(value, (-1, 1, 1)) for name, value in table.items()}
        factors = np.reshape(1 if self.layer_rates is None else self.layer_rates, (1, -1, 1))
        weights = np.array([1.0, 0.0])  # and not the biases
        decay = (self.weight_decay / share)[:, None, None] * weights
        table["learning_rate"] = table["learning_rate"] * factors
        table["l1"] = (self.l1 / share)[:, None, None] * weights
        if self.decoupled:
            table["decay"] = np.reshape(rate, (-1, 1, 1)) * factors * decay
        else:
            table["l2"] = decay
        numbers = np.empty((steps, layers, 2, len(HYPER)), dtype)
        with np.errstate(over="ignore", under="ignore"):
            for i, name in enumerate(HYPER):
                numbers[..., i] = table[name]
        if not np.isfinite(numbers).all():
            name = HYPER[int(np.argwhere(~np.isfinite(numbers))[0][-1])]
            value = getattr(self, _ATTRIBUTE.get(name, name), None)
            raise ValueError(
                f"{_ATTRIBUTE.get(name, name)} is {value!r}, too large for {numbers.dtype}; expected a smaller number"
            )
        if getattr(self, "epsilon", 0) and not numbers[..., -1].all():
            raise ValueError(f"epsilon is {self.epsilon!r}, which is 0 in {numbers.dtype}; expected a larger number")  # type: ignore[attr-defined]
        return numbers


@dataclass(eq=False)
class SGD(Optimizer):
    """Gradient descent:  v <- momentum v + g,  w <- w - learning_rate v   (Polyak, 1964).

    With nesterov, w <- w - learning_rate (g + momentum v)   (Sutskever et al., ICML 2013).

    rate_in_velocity  v <- momentum v + learning_rate g,  w <- w - v,  as in that paper, in scikit-learn and Keras; it differs
                      when the learning rate changes

    ValueError: see Optimizer; momentum of 1 or more, nesterov without momentum.
    """

    learning_rate: float | Schedule = 0.05
    momentum: float = 0.0
    _: KW_ONLY
    nesterov: bool = False
    rate_in_velocity: bool = False

    def check(self) -> None:
        super().check()
        if self.nesterov and not self.momentum:
            raise ValueError("nesterov needs a momentum; pass for example momentum=0.9")

    @property
    def rule(self) -> str:  # type: ignore[override]
        return "nesterov" if self.nesterov else "momentum" if self.momentum else "sgd"

    def numbers(self, rate: npt.NDArray[np.float64], step: npt.NDArray[np.float64]) -> Mapping[str, Any]:
        if self.rate_in_velocity and self.momentum:
            return {"learning_rate": 1.0, "beta1": self.momentum, "gain1": rate}
        return {"learning_rate": rate, "beta1": self.momentum}


@dataclass(eq=False)
class Adam(Optimizer):
    """Adam (Kingma and Ba, ICLR 2015):  m <- beta1 m + (1 - beta1) g,  s <- beta2 s + (1 - beta2) g^2,

        w <- w - learning_rate (m / (1 - beta1^t)) / (sqrt(s / (1 - beta2^t)) + epsilon),   t = 1, 2, 3, ...

    the paper's Algorithm 1, as in PyTorch.  epsilon_hat takes the form at the end of its section 2, as scikit-learn and
    TensorFlow do:  w <- w - learning_rate sqrt(1 - beta2^t) / (1 - beta1^t) m / (sqrt(s) + epsilon).

    ValueError: see Optimizer; beta1 or beta2 of 1 or more, epsilon of 0.
    """

    rule = "adam"

    learning_rate: float | Schedule = 0.001
    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8
    _: KW_ONLY
    epsilon_hat: bool = False

    @property
    def varies(self) -> bool:
        return True

    def numbers(self, rate: npt.NDArray[np.float64], step: npt.NDArray[np.float64]) -> Mapping[str, Any]:
        mean, square = 1 - self.beta1**step, np.sqrt(1 - self.beta2**step)
        return {
            "learning_rate": rate * square / mean, "epsilon": self.epsilon * (1.0 if self.epsilon_hat else square),
            "beta1": self.beta1, "gain1": 1 - self.beta1, "beta2": self.beta2, "gain2": 1 - self.beta2,
        }  # fmt: skip


@dataclass(eq=False)
class AdamW(Adam):
    """Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019):  w <- (1 - learning_rate weight_decay) w - ..."""

    _: KW_ONLY
    weight_decay: float = 0.01
    decoupled: bool = True


@dataclass(eq=False)
class RMSprop(Optimizer):
    """RMSprop (Hinton, 2012):  s <- beta s + (1 - beta) g^2,  w <- w - learning_rate g / (sqrt(s) + epsilon).

    ValueError: see Optimizer; beta of 1 or more, epsilon of 0.
    """

    rule = "rmsprop"

    learning_rate: float | Schedule = 0.001
    beta: float = 0.99
    epsilon: float = 1e-8

    def numbers(self, rate: npt.NDArray[np.float64], step: npt.NDArray[np.float64]) -> Mapping[str, Any]:
        return {"learning_rate": rate, "beta2": self.beta, "gain2": 1 - self.beta, "epsilon": self.epsilon}


@dataclass(eq=False)
class Adagrad(Optimizer):
    """Adagrad (Duchi et al., JMLR 2011):  s <- s + g^2,  w <- w - learning_rate g / (sqrt(s) + epsilon).

    ValueError: see Optimizer; epsilon of 0.
    """

    rule = "rmsprop"

    learning_rate: float | Schedule = 0.01
    epsilon: float = 1e-10

    def numbers(self, rate: npt.NDArray[np.float64], step: npt.NDArray[np.float64]) -> Mapping[str, Any]:
        return {"learning_rate": rate, "beta2": 1.0, "gain2": 1.0, "epsilon": self.epsilon}
