"""What MLPClassifier and MLPRegressor share: a bpgpu.MLP that is trained as scikit-learn trains its own."""

from __future__ import annotations

import os
import warnings
from numbers import Real
from typing import Any, TypeAlias

import numpy as np

from .backend import PRECISIONS, Backend
from .callbacks import as_callbacks
from .course import Course
from .fitting import History
from .kernels.names import ACTIVATIONS, DTYPES
from .lbfgs import fit_lbfgs
from .mlp import MLP
from .optim import SGD, Adam, Optimizer
from .streams import is_sparse

try:
    from sklearn.base import BaseEstimator, is_regressor
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import train_test_split
    from sklearn.utils import check_random_state, column_or_1d
    from sklearn.utils._param_validation import Interval, StrOptions
    from sklearn.utils.class_weight import compute_class_weight, compute_sample_weight
    from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data
except ImportError as error:
    raise ImportError("bpgpu's estimators need scikit-learn: python -m pip install 'bpgpu[sklearn]'") from error

Array: TypeAlias = np.ndarray[Any, Any]
_SIGMOID = {"logistic": "sigmoid"}  # what scikit-learn calls it
_DESIGN = ("hidden_layer_sizes", "activation", "dropout", "loss", "backend", "dtype", "precision")
_OUT = {"cross_entropy": "softmax", "binary_cross_entropy": "logistic"}  # out_activation_, otherwise "identity"


def has_steps(estimator: Any) -> bool:
    if estimator.solver == "lbfgs":
        raise AttributeError("partial_fit goes with solver='sgd' or 'adam'; 'lbfgs' needs all data at once")
    return True


def constraints(theirs: Any, **more: Any) -> dict[str, list[Any]]:
    """What scikit-learn checks of its parameters, for ours."""
    names = StrOptions({*ACTIVATIONS, *_SIGMOID})
    return {
        **theirs._parameter_constraints,
        "activation": [names, list, tuple], "momentum": [Interval(Real, 0, 1, closed="left")],
        "dropout": [Interval(Real, 0, 1, closed="left"), list, tuple], "callbacks": "no_validation",
        "backend": [str, Backend], "dtype": [StrOptions(set(DTYPES)), None],
        "precision": [StrOptions(set(PRECISIONS))],
        **more,
    }  # fmt: skip


class Perceptron(BaseEstimator):
    """What both estimators share.

    network_ is the bpgpu.MLP; coefs_ and intercepts_ are its weights and biases on the host, and may be assigned to.
    """

    def _keep(self, parameters: dict[str, Any]) -> None:
        """The arguments of __init__, as they are."""
        self.__dict__.update({name: value for name, value in parameters.items() if name != "self"})

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.sparse = True
        return tags

    # -- fit -------------------------------------------------------------------------------------------------------------

    def fit(
        self, X: Any, y: Any, sample_weight: Any = None, *, X_val: Any = None, y_val: Any = None, sample_weight_val: Any = None,
        resume: str | os.PathLike[str] | None = None,
    ) -> Any:  # fmt: skip
        """Train on X (n, features), dense or sparse, and y: labels (n,), 0 and 1 (n, labels), or numbers (n,) or (n, outputs).

        sample_weight      (n,)
        X_val, y_val       data for validation_scores_ and validation_loss_curve_ after each epoch, and for early_stopping,
                           which then holds back no share of the training data; sample_weight_val their weights
        resume             the file of a bpgpu.Checkpoint among the callbacks of the same estimator (random_state an integer)
                           in a fit to the same data: goes on from there, to the bits of the fit that was never interrupted

        OSError: resume cannot be read.
        ValueError, TypeError: wrong data or parameters.  bpgpu.Diverged: the loss is no longer finite.
        """
        return self._fit(X, y, sample_weight, (X_val, y_val, sample_weight_val), incremental=False, resume=resume)

    def _fit(
        self, X: Any, y: Any, sample_weight: Any, validation: tuple[Any, Any, Any], *, incremental: bool, resume: Any = None
    ) -> Any:
        self._validate_params()
        if incremental and self.early_stopping:
            raise ValueError("partial_fit has no early_stopping: it is one epoch; set early_stopping=False")
        if self.solver == "lbfgs":
            self._check_lbfgs(X_val=any(part is not None for part in validation), resume=resume is not None)
        fresh = not hasattr(self, "network_") or not (self.warm_start or incremental)
        if not fresh:
            self._check_design()
        X, y = self._checked(X, y, reset=fresh, dtype=(np.float64, np.float32) if fresh else self.network_.dtype)
        targets = self._learned_targets(y, fresh, incremental)
        weight = None if sample_weight is None else _check_sample_weight(sample_weight, X, dtype=X.dtype)
        if (by_class := getattr(self, "class_weight", None)) is not None:
            if incremental and isinstance(by_class, str):
                raise ValueError(f"class_weight={by_class!r} needs all data at once; pass partial_fit a dict of weights")
            if isinstance(by_class, dict) and y.ndim == 1:  # a part of the data may lack some of the classes
                factors = compute_class_weight(by_class, classes=self.classes_, y=y)[targets].astype(X.dtype)
            else:
                factors = compute_sample_weight(by_class, y).astype(X.dtype)
            weight = factors if weight is None else weight * factors
        held_back = self._validation_data(*validation)
        if fresh or not incremental:
            self._random_state = check_random_state(self.random_state)
        if fresh:
            self._start(X.dtype, targets.shape[1] if targets.ndim == 2 else 1)
        if self.solver == "lbfgs":
            self._fit_lbfgs(X, targets, weight)
            return self
        if self.early_stopping and held_back is None:
            X, targets, weight, held_back = self._hold_back(X, targets, weight)
        self._fit_in_steps(X, targets, weight, held_back, incremental, resume)
        return self

    def _check_lbfgs(self, **given: Any) -> None:
        for name, value in (given | {"callbacks": as_callbacks(self.callbacks), "dropout": np.any(self.dropout)}).items():
            if value:
                raise ValueError(f"{name} goes with solver='sgd' or 'adam'; 'lbfgs' has no epochs or batches")

    @property
    def _hidden(self) -> tuple[Any, ...]:
        return tuple(np.atleast_1d(self.hidden_layer_sizes).tolist())

    @property
    def _design(self) -> dict[str, Any]:
        """The parameters that a network is made of."""
        design = {name: getattr(self, name) for name in _DESIGN if hasattr(self, name)} | {"hidden_layer_sizes": self._hidden}
        return {name: tuple(value) if isinstance(value, list) else value for name, value in design.items()}

    def _check_design(self) -> None:
        for name, value in self._design.items():
            if value != (its := self._design_of_network[name]):
                raise ValueError(
                    f"{name} is {getattr(self, name)!r}; the network that goes on was made with {its!r}: set it back, or begin "
                    "a new one by fit with warm_start=False"
                )

    def _checked(self, X: Any, y: Any, *, reset: bool, dtype: Any) -> tuple[Any, Any]:
        """X of a dtype of the network, dense or as rows (csr), and y dense."""
        numeric = is_regressor(self)
        X, y = validate_data(
            self, X, y, accept_sparse="csr", multi_output=True, y_numeric=numeric, dtype=self.dtype or dtype, reset=reset
        )
        if is_sparse(y):
            y = y.toarray()
        return X, column_or_1d(y, warn=True) if y.ndim == 2 and y.shape[1] == 1 else y

    def _start(self, dtype: Any, columns: int) -> None:
        """A new network for targets of so many columns, its weights and biases drawn as scikit-learn draws them (Glorot and
        Bengio, 2010)."""
        loss, outputs = self._loss_and_outputs(columns)
        hidden = self._hidden
        if not isinstance(self.activation, str) and len(self.activation) != len(hidden):
            raise ValueError(f"{len(self.activation)} activations for {len(hidden)} hidden layers; expected one for each")
        names = [self.activation] * (len(hidden) + 1) if isinstance(self.activation, str) else list(self.activation)
        biases: list[Array] = []

        def draw(shape: tuple[int, int], generator: Any) -> Array:
            name = names[min(len(biases), len(names) - 1)] if names else "identity"
            bound = np.sqrt((2 if name in ("logistic", "sigmoid") else 6) / sum(shape))
            W: Array = self._random_state.uniform(-bound, bound, shape)
            biases.append(self._random_state.uniform(-bound, bound, shape[1]))
            return W

        network = MLP(
            [self.n_features_in_, *hidden, outputs], loss=loss, backend=self.backend, dtype=dtype, precision=self.precision,
            dropout=self.dropout, activation=[_SIGMOID.get(name, name) for name in names[: len(hidden)]], initializer=draw,
        )  # fmt: skip
        classes: Any = getattr(self, "classes_", None)
        if classes is not None and len(classes) > 1 and not self._multilabel:
            network.classes = tuple(map(str, classes.tolist()))
        if any(network.dropout):
            network.seed = int(self._random_state.randint(2**31))
        self.__dict__.update(
            network_=network, n_layers_=len(hidden) + 2, n_outputs_=outputs, out_activation_=_OUT.get(loss, "identity"),
            n_iter_=0, t_=0, loss_curve_=[], validation_loss_curve_=None, validation_scores_=None, best_loss_=None,
            best_validation_score_=None, _waited=0, _design_of_network=self._design,
        )  # fmt: skip
        self.intercepts_ = biases
        self.__dict__.pop("_optimizer", None)

    def _validation_data(self, X: Any, y: Any, weight: Any) -> tuple[Any, Array, Array | None] | None:
        if X is None and y is None and weight is None:
            return None
        if X is None or y is None:
            raise ValueError("X_val and y_val go together; one of them is missing")
        X, y = self._checked(X, y, reset=False, dtype=(np.float64, np.float32))
        return X, self._targets(y), None if weight is None else _check_sample_weight(weight, X, dtype=X.dtype)

    def _hold_back(self, X: Any, targets: Array, weight: Array | None) -> tuple[Any, ...]:
        """A share of the data for validation, chosen as scikit-learn chooses it."""
        stratify = targets if self.out_activation_ == "logistic" and self.n_outputs_ == 1 else None
        rows, kept = train_test_split(
            np.arange(X.shape[0]), random_state=self._random_state, test_size=self.validation_fraction, stratify=stratify
        )
        if len(kept) < 2:
            raise ValueError(f"validation_fraction={self.validation_fraction} of {X.shape[0]} examples are too few; raise it")
        weights = (None, None) if weight is None else (weight[rows], weight[kept])
        return X[rows], targets[rows], weights[0], (X[kept], targets[kept], weights[1])

    def _fit_lbfgs(self, X: Any, targets: Array, weight: Array | None) -> None:
        def iterated(history: History) -> None:
            self.n_iter_, self.loss_curve_ = len(history.loss), history.loss
            if self.verbose:
                print(f"Iteration {self.n_iter_}, loss = {self.loss_curve_[-1]:.8f}")

        self.n_iter_, self.loss_curve_ = 0, []
        try:
            fit_lbfgs(
                self.network_, X, targets, max_iter=self.max_iter, tol=self.tol, weight_decay=self.alpha,
                average_penalties=True, max_fun=self.max_fun, sample_weight=weight, callback=iterated,
            )  # fmt: skip
        except KeyboardInterrupt:
            self._warn_of_interrupt()
        examples = X.shape[0] if weight is None else weight.sum()
        penalty = self.alpha / 2 * sum(float(np.vdot(W, W)) for W in self.coefs_) / examples
        self.loss_ = self.best_loss_ = self._evaluated(X, targets, weight)[0] + penalty
        if self.n_iter_ == self.max_iter:
            self._warn_of_max_iter()

    def _fit_in_steps(
        self, X: Any, targets: Array, weight: Array | None, held_back: tuple[Any, ...] | None, incremental: bool,
        resume: Any,
    ) -> None:  # fmt: skip
        n = X.shape[0]
        size = min(200, n) if self.batch_size == "auto" else min(self.batch_size, n)
        if self.batch_size != "auto" and self.batch_size > n:
            warnings.warn(f"batch_size={self.batch_size} is cut to the {n} examples there are", stacklevel=4)
        if not incremental or not hasattr(self, "_optimizer"):
            self._optimizer = self._new_optimizer()
        self._optimizer.weight_decay = float(self.alpha)
        rows, drawn = np.arange(n), 0

        def order(epoch: int) -> Array:
            """Made of the one before, of which a resumed fit has seen none."""
            nonlocal rows, drawn
            while drawn <= epoch:
                rows, drawn = rows[self._random_state.permutation(n)], drawn + 1
            return rows

        course = Course(self, held_back)
        self.n_iter_ = 0
        try:
            self.network_.fit(
                X, targets, epochs=1 if incremental else self.max_iter, batch_size=int(size), optimizer=self._optimizer,
                sample_weight=weight, shuffle=order if self.shuffle else False,
                callbacks=[course, *as_callbacks(self.callbacks)], resume=resume,
            )  # fmt: skip
        except KeyboardInterrupt:
            self._warn_of_interrupt()
        else:
            if self.n_iter_ == self.max_iter and not course.ended and not incremental:
                self._warn_of_max_iter()
        if self.shuffle:
            order(self.n_iter_ - 1)  # if that was resumed at its end

    def _warn_of_interrupt(self) -> None:
        warnings.warn("the training was interrupted; what it has learned is kept", stacklevel=5)

    def _warn_of_max_iter(self) -> None:
        warnings.warn(
            f"the training has not converged after max_iter={self.max_iter} iterations; raise max_iter, or scale the data",
            ConvergenceWarning, stacklevel=5,
        )  # fmt: skip

    def _new_optimizer(self) -> Optimizer:
        rate = float(self.learning_rate_init)
        if self.solver == "adam":
            return Adam(rate, self.beta_1, self.beta_2, self.epsilon, epsilon_hat=True, average_penalties=True)
        nesterov = self.nesterovs_momentum and self.momentum > 0
        return SGD(rate, self.momentum, nesterov=nesterov, rate_in_velocity=True, average_penalties=True)

    # -- use -------------------------------------------------------------------------------------------------------------

    def _outputs(self, X: Any) -> Array:
        a: Array = self.network_.outputs(X)
        return a

    def _new_outputs(self, X: Any) -> Array:
        """a[L] of the caller's X."""
        check_is_fitted(self)
        return self._outputs(validate_data(self, X, accept_sparse="csr", dtype=self.network_.dtype, reset=False))

    def _evaluated(self, X: Any, targets: Array, weight: Array | None) -> tuple[float, float]:
        """(loss without its penalty, score) on data of one's own."""
        loss, _ = self.network_.evaluate(X, targets, sample_weight=weight)
        return loss / self._averaged, self._score(self._outputs(X), targets, weight)

    @property
    def _averaged(self) -> int:
        """scikit-learn's loss is the mean over the outputs of a regression, and the sum over those of a classification."""
        return self.n_outputs_ if self.out_activation_ == "identity" else 1

    @property
    def coefs_(self) -> list[Array]:
        return [self.network_.backend.to_numpy(W) for W in self.network_.weights]

    @coefs_.setter
    def coefs_(self, arrays: Any) -> None:
        self._assign(self.network_.weights, arrays)

    @property
    def intercepts_(self) -> list[Array]:
        return [self.network_.backend.to_numpy(b) for b in self.network_.biases]

    @intercepts_.setter
    def intercepts_(self, arrays: Any) -> None:
        self._assign(self.network_.biases, arrays)

    def _assign(self, own: list[Any], arrays: Any) -> None:
        wanted = [tuple(array.shape) for array in own]
        if (given := [np.shape(array) for array in arrays]) != wanted:
            raise ValueError(f"the arrays have the shapes {given}; expected {wanted}")
        for array, values in zip(own, arrays, strict=True):
            self.network_.backend.write(array, np.asarray(values, self.network_.dtype))

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = dict(super().__getstate__())
        if "_optimizer" in state:  # what its rule keeps, too: partial_fit goes on to the same bits
            trainer, to_numpy = self.network_.trainer(self._optimizer), self.network_.backend.to_numpy
            kept = {name: np.array(to_numpy(array)) for name, array in trainer.states.items()}
            state["_kept"] = trainer.steps_taken, kept
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        steps_taken, kept = state.pop("_kept", (0, {}))
        super().__setstate__(state)
        if "_optimizer" in state:
            trainer = self.network_.trainer(self._optimizer)
            trainer.adopt(self._optimizer)
            trainer.steps_taken = steps_taken
            for name, array in kept.items():
                self.network_.backend.write(trainer.states[name], array)
