"""MLPClassifier and MLPRegressor: scikit-learn's estimators by their names, parameters and attributes, each on a bpgpu.MLP.

With the same random_state they draw the initial weights, the validation set and the order of the batches as scikit-learn
does, so their loss curves are the same up to rounding.  Beyond that they take validation data, class weights, dropout, an
activation for each layer, callbacks and a backend.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from .backend import Backend
from .callbacks import Callbacks
from .estimating import Array, Perceptron, constraints, has_steps  # first: it says what is missing

# isort: split
from sklearn import neural_network
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.multiclass import check_classification_targets, type_of_target, unique_labels
from sklearn.utils.validation import check_is_fitted


class MLPClassifier(ClassifierMixin, Perceptron):
    """A multilayer perceptron for one of several classes, or for several labels at once.

    Parameters and attributes are those of sklearn.neural_network.MLPClassifier, and mean the same.  Besides:

    activation    any of bpgpu.ACTIVATIONS ("logistic" is "sigmoid"), or one for each hidden layer
    dropout       share of the hidden units that a training step leaves out, or one for the inputs and each hidden layer
    class_weight  {label: weight} or "balanced"
    callbacks     one or a list of bpgpu.Callback or of functions of one bpgpu.Progress; for "sgd" and "adam"
    backend       "cpu", "cuda", "auto", "numpy" or a bpgpu.Backend
    dtype         "float32", "float64", or None: that of X, as in scikit-learn
    precision     of products: "exact", or on a GPU, with dtype "float32", "fp32-tc", "tf32" or "bf16" (see bpgpu.MLP)

    network_                 the bpgpu.MLP
    validation_loss_curve_   loss (without its penalty) on the validation data after each epoch; None without such data

    partial_fit goes on with the random numbers of the call before, where scikit-learn starts them again.  The parameters that a
    network is made of do not change while it goes on, by partial_fit or warm_start.  momentum is less than 1.  fit raises
    bpgpu.Diverged where the loss is no longer finite.
    """

    _parameter_constraints = constraints(neural_network.MLPClassifier, class_weight=[dict, StrOptions({"balanced"}), None])

    def __init__(
        self, hidden_layer_sizes: Any = (100,), activation: str | Sequence[str] = "relu", *, solver: str = "adam",
        alpha: float = 0.0001, batch_size: int | str = "auto", learning_rate: str = "constant",
        learning_rate_init: float = 0.001, power_t: float = 0.5, max_iter: int = 200, shuffle: bool = True,
        random_state: Any = None, tol: float = 1e-4, verbose: bool = False, warm_start: bool = False,
        momentum: float = 0.9, nesterovs_momentum: bool = True, early_stopping: bool = False,
        validation_fraction: float = 0.1, beta_1: float = 0.9, beta_2: float = 0.999,
        epsilon: float = 1e-8, n_iter_no_change: float = 10, max_fun: int = 15000, dropout: float | Sequence[float] = 0.0,
        class_weight: Any = None, callbacks: Callbacks = None, backend: str | Backend = "cpu", dtype: str | None = None,
        precision: str = "exact",
    ) -> None:  # fmt: skip
        self._keep(locals())

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    @available_if(has_steps)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None, classes: Any = None) -> Any:
        """One epoch on X and y; of single labels, the first call names all classes.  ValueError, TypeError: see fit."""
        if not hasattr(self, "network_"):
            multilabel = type_of_target(y).startswith("multilabel")
            if classes is None and not multilabel:
                raise ValueError("classes must be passed on the first call to partial_fit: all labels there will be")
            self._learn_classes(y if multilabel else classes, multilabel)
        elif classes is not None and not np.array_equal(self.classes_, unique_labels(classes)):
            raise ValueError(f"classes={classes!r} are not those of the first call, {self.classes_}")
        return self._fit(X, y, sample_weight, (None, None, None), incremental=True)

    def predict(self, X: Any) -> Array:
        """Labels (n,), or 0 and 1 (n, labels)."""
        decided = self._decided(self._new_outputs(X))
        return decided if self._multilabel else np.asarray(self.classes_[decided])

    def predict_proba(self, X: Any) -> Array:
        """Probabilities (n, classes) in the order of classes_, or of each label (n, labels)."""
        a = self._new_outputs(X)
        if len(self.classes_) == 1:
            return np.ones((len(a), 1), a.dtype)
        return np.hstack([1 - a, a]) if a.shape[1] == 1 else a

    def predict_log_proba(self, X: Any) -> Array:
        """The logarithm of predict_proba."""
        with np.errstate(divide="ignore"):
            return np.log(self.predict_proba(X))

    # -- labels and numbers of the network -------------------------------------------------------------------------------

    def _learned_targets(self, y: Array, fresh: bool, incremental: bool) -> Array:
        check_classification_targets(y)
        if type_of_target(y) == "multiclass-multioutput":
            raise ValueError(
                f"y has {y.shape[1]} columns of several classes each; expected labels (n,), or 0 and 1 (n, labels)"
            )
        if fresh and not incremental:
            self._learn_classes(y, type_of_target(y) == "multilabel-indicator")
        elif not incremental and not np.array_equal(found := unique_labels(y), self.classes_):
            raise ValueError(
                f"warm_start can only be used where `y` has the same classes as in the previous call to fit. "
                f"Previously got {self.classes_}, `y` has {found}"
            )
        return self._targets(y)

    def _learn_classes(self, y: Any, multilabel: bool) -> None:
        self.classes_, self._multilabel = unique_labels(y), multilabel

    def _targets(self, y: Array) -> Array:
        """Numbers of the classes (n,), or 0 and 1 (n, labels)."""
        multilabel = type_of_target(y) == "multilabel-indicator"
        if multilabel != self._multilabel or y.shape[1:] != ((len(self.classes_),) if multilabel else ()):
            raise ValueError(
                f"y has the shape {y.shape}; expected {'several labels' if self._multilabel else 'one label'} a row"
            )
        if multilabel:
            return np.asarray(y != 0, np.int64)
        if len(unknown := np.setdiff1d(y, self.classes_)):
            raise ValueError(f"`y` has classes not in `self.classes_`: {unknown}; `self.classes_` has {self.classes_}")
        return np.asarray(np.searchsorted(self.classes_, y), np.int64)

    def _loss_and_outputs(self, columns: int) -> tuple[str, int]:
        k = len(self.classes_)
        if self._multilabel or k > 2:
            return "binary_cross_entropy" if self._multilabel else "cross_entropy", k
        return "binary_cross_entropy", 1

    def _decided(self, a: Array) -> Array:
        """As _targets are, of the network's outputs."""
        if self._multilabel:
            return (a > 0.5).astype(np.int64)
        number = a.argmax(axis=1) if a.shape[1] > 1 else (a[:, 0] > 0.5).astype(np.int64)
        return np.asarray(np.minimum(number, len(self.classes_) - 1))

    def _score(self, a: Array, targets: Array, weight: Array | None) -> float:
        return float(accuracy_score(targets, self._decided(a), sample_weight=weight))


class MLPRegressor(RegressorMixin, Perceptron):
    """A multilayer perceptron for one or several numbers.

    Parameters and attributes are those of sklearn.neural_network.MLPRegressor, and mean the same.  Besides:

    loss          "squared_error", "absolute_error" or "huber"
    activation, dropout, callbacks, backend, dtype, precision; network_, validation_loss_curve_; partial_fit, momentum,
    Diverged: see MLPClassifier
    """

    _parameter_constraints = constraints(
        neural_network.MLPRegressor, loss=[StrOptions({"squared_error", "absolute_error", "huber"})]
    )

    def __init__(
        self, loss: str = "squared_error", hidden_layer_sizes: Any = (100,), activation: str | Sequence[str] = "relu", *,
        solver: str = "adam", alpha: float = 0.0001, batch_size: int | str = "auto", learning_rate: str = "constant",
        learning_rate_init: float = 0.001, power_t: float = 0.5, max_iter: int = 200, shuffle: bool = True,
        random_state: Any = None, tol: float = 1e-4, verbose: bool = False, warm_start: bool = False,
        momentum: float = 0.9, nesterovs_momentum: bool = True, early_stopping: bool = False,
        validation_fraction: float = 0.1, beta_1: float = 0.9, beta_2: float = 0.999,
        epsilon: float = 1e-8, n_iter_no_change: float = 10, max_fun: int = 15000, dropout: float | Sequence[float] = 0.0,
        callbacks: Callbacks = None, backend: str | Backend = "cpu", dtype: str | None = None, precision: str = "exact",
    ) -> None:  # fmt: skip
        self._keep(locals())

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    @available_if(has_steps)
    def partial_fit(self, X: Any, y: Any, sample_weight: Any = None) -> Any:
        """One epoch on X and y.  ValueError, TypeError: see fit."""
        return self._fit(X, y, sample_weight, (None, None, None), incremental=True)

    def predict(self, X: Any) -> Array:
        """Numbers (n,), or (n, outputs) if there are several."""
        a = self._new_outputs(X)
        return np.asarray(a[:, 0]) if a.shape[1] == 1 else a

    def _learned_targets(self, y: Array, fresh: bool, incremental: bool) -> Array:
        if not fresh and (y.shape[1] if y.ndim == 2 else 1) != self.n_outputs_:
            raise ValueError(f"y has the shape {y.shape}; expected {self.n_outputs_} numbers a row as in the first call")
        return self._targets(y)

    def _targets(self, y: Array) -> Array:
        return y

    def _loss_and_outputs(self, columns: int) -> tuple[str, int]:
        return self.loss, columns

    def _score(self, a: Array, targets: Array, weight: Array | None) -> float:
        if not np.isfinite(a).all():
            return np.nan
        return float(r2_score(targets, a, sample_weight=weight))


# -- conversions ---------------------------------------------------------------------------------------------------------

_LEARNED = (
    "loss_",
    "best_loss_",
    "loss_curve_",
    "validation_scores_",
    "best_validation_score_",
    "n_iter_",
    "t_",
    "feature_names_in_",
)


def from_sklearn(estimator: Any, **parameters: Any) -> MLPClassifier | MLPRegressor:
    """The same estimator here, of a fitted sklearn.neural_network.MLPClassifier or MLPRegressor; its network is network_.

    parameters  of ours to set, such as backend="cuda"

    What the solver kept (velocity, averages) stays behind: partial_fit begins with a new one.
    TypeError: it is another object.  ValueError: its loss is "poisson".  sklearn.exceptions.NotFittedError: it is not fitted.
    """
    if not isinstance(estimator, (neural_network.MLPClassifier, neural_network.MLPRegressor)):
        raise TypeError(
            f"from_sklearn got a {type(estimator).__name__}; expected a fitted scikit-learn MLPClassifier or MLPRegressor"
        )
    check_is_fitted(estimator)
    classifies = isinstance(estimator, neural_network.MLPClassifier)
    ours = (MLPClassifier if classifies else MLPRegressor)(**{**estimator.get_params(), **parameters})
    ours._validate_params()
    ours.n_features_in_ = estimator.n_features_in_
    outputs = estimator.n_outputs_
    if classifies:
        ours.classes_, ours._multilabel = estimator.classes_, estimator.out_activation_ == "logistic" and outputs > 1
    ours._random_state = check_random_state(0)
    ours._start(estimator.coefs_[0].dtype, outputs)
    ours._random_state = check_random_state(ours.random_state)
    ours.coefs_, ours.intercepts_ = estimator.coefs_, estimator.intercepts_
    _copy_learned(estimator, ours)
    return ours


def to_sklearn(estimator: MLPClassifier | MLPRegressor) -> Any:
    """The same estimator of sklearn.neural_network, of a fitted one of ours.

    TypeError: it is another object.  ValueError: it has what scikit-learn has not: other activations or losses.
    """
    if not isinstance(estimator, (MLPClassifier, MLPRegressor)):
        raise TypeError(f"to_sklearn got a {type(estimator).__name__}; expected a fitted bpgpu.MLPClassifier or MLPRegressor")
    check_is_fitted(estimator)
    network, classifies = estimator.network_, isinstance(estimator, MLPClassifier)
    kinds = set(network.activations) or {"identity"}
    name = kinds.pop()
    if kinds or name not in ("identity", "sigmoid", "tanh", "relu"):
        raise ValueError(
            f"scikit-learn has one of identity, logistic, tanh, relu for all layers; this is {network.activations}"
        )
    if not classifies and estimator.loss != "squared_error":
        raise ValueError(f"scikit-learn has no loss {estimator.loss!r}")
    theirs = neural_network.MLPClassifier if classifies else neural_network.MLPRegressor
    known = estimator.get_params()
    settings = {key: known[key] for key in theirs().get_params()}
    settings |= {"activation": "logistic" if name == "sigmoid" else name, "hidden_layer_sizes": network.layers[1:-1]}
    their = theirs(
        **settings | {"solver": "adam", "max_iter": 1, "early_stopping": False, "warm_start": False, "random_state": 0}
    )
    outputs = network.layers[-1]
    if classifies:
        y = np.eye(outputs, dtype=int) if estimator._multilabel else estimator.classes_
        their.partial_fit(np.zeros((len(y), network.layers[0]), network.dtype), y, classes=estimator.classes_)
    else:
        their.partial_fit(np.zeros((1, network.layers[0]), network.dtype), np.zeros((1, outputs)[: 1 + (outputs > 1)]))
    del their._optimizer
    their.set_params(**settings)
    their.coefs_ = [np.array(W) for W in estimator.coefs_]
    their.intercepts_ = [np.array(b) for b in estimator.intercepts_]
    _copy_learned(estimator, their)
    return their


def _copy_learned(source: Any, target: Any) -> None:
    for name in _LEARNED:
        if hasattr(source, name):
            value = getattr(source, name)
            setattr(target, name, list(value) if isinstance(value, list) else value)
