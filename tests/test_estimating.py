"""How the estimators go on: parts of the data, pickles, changed parameters, checkpoints, Ctrl-C; and what they say of it."""

from __future__ import annotations

import pickle
from contextlib import nullcontext
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn import neural_network
from sklearn.base import clone
from sklearn.datasets import load_iris, make_regression
from sklearn.model_selection import GridSearchCV
from sklearn.preprocessing import StandardScaler

import bpgpu
from bpgpu import MLPClassifier
from bpgpu.course import KEPT
from bpgpu.cpu import CPUBackend

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
X, y = load_iris(return_X_y=True)
X = StandardScaler().fit_transform(X)
numbers_X, numbers_y = make_regression(200, 6, random_state=0)
numbers_y = numbers_y / 50
SMALL: dict[str, Any] = {"hidden_layer_sizes": (16, 9), "max_iter": 12, "random_state": 3}
BOTH = pytest.mark.parametrize("kind", ["MLPClassifier", "MLPRegressor"])


def data_of(kind: str) -> tuple[np.ndarray, np.ndarray]:
    return (X, y) if kind == "MLPClassifier" else (numbers_X, numbers_y)


# -- parts of the data -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_a_batch_whose_weights_are_all_0_teaches_nothing(solver: str, dtype: np.dtype) -> None:
    weight = np.array([0.0] * 20 + [1.0] * 130)
    options: dict[str, Any] = {**SMALL, "solver": solver, "batch_size": 10, "shuffle": False, "dtype": dtype.name}
    curve = MLPClassifier(**options).fit(X, y, sample_weight=weight).loss_curve_
    assert len(curve) == 12 and np.isfinite(curve).all() and curve[-1] < 0.9 * curve[0]
    if solver == "sgd":  # without momentum such batches are none
        options |= {"momentum": 0.0, "max_iter": 1}
        whole, part = MLPClassifier(**options).fit(X, y, sample_weight=weight), MLPClassifier(**options).fit(X[20:], y[20:])
        np.testing.assert_allclose(whole.network_.theta, part.network_.theta, rtol=1e-5, atol=1e-7)


def test_class_weights_of_a_part_without_some_of_the_classes() -> None:
    names = np.array(["a", "b", "c"])[y]
    first, late = np.r_[0:50, 60:70], np.r_[60:70, 110:150]  # a and b; b and c
    weighted = MLPClassifier(**SMALL, class_weight={"a": 5.0})
    by_hand = MLPClassifier(**SMALL)
    for rows in (first, late):
        weighted.partial_fit(X[rows], names[rows], classes=["a", "b", "c"])
        by_hand.partial_fit(X[rows], names[rows], np.where(names[rows] == "a", 5.0, 1.0), classes=["a", "b", "c"])
    assert weighted.loss_curve_ == by_hand.loss_curve_
    with pytest.raises(ValueError, match="not in class_weight"):
        MLPClassifier(**SMALL, class_weight={"A": 5.0}).fit(X, names)


# -- parameters that change -----------------------------------------------------------------------------------------------


CHANGES: dict[str, Any] = {
    "hidden_layer_sizes": 5, "activation": "tanh", "dropout": 0.5, "backend": "numpy", "dtype": "float32", "precision": "tf32",
    "loss": "huber",
}  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "name"), [*product(["MLPRegressor"], CHANGES), *product(["MLPClassifier"], list(CHANGES)[:-1])]
)
def test_what_a_network_is_made_of_cannot_change_while_it_goes_on(kind: str, name: str) -> None:
    e = getattr(bpgpu, kind)(**SMALL, warm_start=True, activation=["relu", "relu"])
    e.fit(*data_of(kind))
    before, theta = e.get_params()[name], e.network_.theta.copy()
    for go_on in (e.fit, e.partial_fit):
        e.set_params(**{name: CHANGES[name]})
        with pytest.raises(ValueError, match=f"^{name} is {CHANGES[name]!r}; the network .* was made with .*: set it back"):
            go_on(*data_of(kind))
        assert np.array_equal(e.network_.theta, theta) and len(e.loss_curve_) == 12
    e.set_params(**{name: before}).fit(*data_of(kind))
    assert len(e.loss_curve_) == 24
    e.set_params(activation=("relu", "relu"), hidden_layer_sizes=[16, 9]).fit(*data_of(kind))  # the same, written otherwise


@pytest.mark.parametrize("solver", ["adam", "sgd"])
def test_alpha_may_change_between_calls_of_partial_fit(solver: str) -> None:
    """As in scikit-learn, whose calls go the same way without a shuffle."""
    estimators = [e(**SMALL, solver=solver, shuffle=False) for e in (neural_network.MLPClassifier, MLPClassifier)]
    for e in estimators:
        for alpha in (1e-4, 30.0, 0.0):
            e.set_params(alpha=alpha).partial_fit(X, y, classes=[0, 1, 2])
    theirs, ours = estimators
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=0, atol=1e-9)
    assert ours.loss_curve_[1] > ours.loss_curve_[2] + 1


# -- the end of a training -------------------------------------------------------------------------------------------------


@BOTH
def test_lbfgs_says_what_it_does(kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    e = getattr(bpgpu, kind)(**SMALL, solver="lbfgs", verbose=True).fit(*data_of(kind))
    expected = [f"Iteration {i}, loss = {loss:.8f}" for i, loss in enumerate(e.loss_curve_, 1)]
    assert capsys.readouterr().out.splitlines() == expected and len(expected) == 12


def test_ctrl_c_keeps_what_lbfgs_has_learned(monkeypatch: pytest.MonkeyPatch) -> None:
    five = MLPClassifier(**{**SMALL, "max_iter": 5}, solver="lbfgs").fit(X, y)
    gradient = bpgpu.MLP.gradient

    def interrupted(self: bpgpu.MLP, *data: Any, **options: Any) -> Any:
        if self.epochs_trained == 5:
            raise KeyboardInterrupt
        return gradient(self, *data, **options)

    monkeypatch.setattr(bpgpu.MLP, "gradient", interrupted)
    clf = MLPClassifier(**SMALL, solver="lbfgs")
    with pytest.warns(UserWarning, match="interrupted"):
        clf.fit(X, y)
    assert clf.n_iter_ == 5 and clf.loss_curve_ == five.loss_curve_ and clf.loss_ == five.loss_
    assert np.array_equal(clf.network_.theta, five.network_.theta)


# -- checkpoints -----------------------------------------------------------------------------------------------------------

RESUMED: dict[str, dict[str, Any]] = {
    "adam, dropout": {"dropout": 0.3},
    "early stopping": {"early_stopping": True, "n_iter_no_change": 3, "learning_rate_init": 0.05, "max_iter": 40},
    "adaptive": {"solver": "sgd", "learning_rate": "adaptive", "n_iter_no_change": 1, "tol": 0.05, "learning_rate_init": 0.2},
    "invscaling, in order": {"solver": "sgd", "learning_rate": "invscaling", "shuffle": False, "dtype": "float32"},
}  # fmt: skip


@BOTH
@pytest.mark.parametrize("case", RESUMED)
@pytest.mark.parametrize("place", [(5, True), (4, False), (0, True), None])
def test_a_resumed_fit_ends_in_the_same_bits(kind: str, case: str, place: tuple[int, bool] | None, tmp_path: Path) -> None:
    """Cut before the checkpoint at the end of an epoch, so that the last one is in its middle; or in the middle, so that it is
    at the end of the epoch before; None: not at all."""

    class PowerCut(Exception):
        pass

    def cut(progress: bpgpu.Progress) -> None:
        if (progress.epoch, progress.epoch_ended) == place:
            raise PowerCut

    options, (data_X, data_y) = {**SMALL, "batch_size": 30, **RESUMED[case]}, data_of(kind)
    validation = {"X_val": data_X[::3], "y_val": data_y[::3]} if case != "early stopping" else {}
    whole = getattr(bpgpu, kind)(**options).fit(data_X, data_y, **validation)
    interrupted = getattr(bpgpu, kind)(**options, callbacks=[cut, bpgpu.Checkpoint(tmp_path / "run", seconds=0)])
    with nullcontext() if place is None else pytest.raises(PowerCut):
        interrupted.fit(data_X, data_y, **validation)
    resumed = getattr(bpgpu, kind)(**options).fit(data_X, data_y, **validation, resume=tmp_path / "run")
    assert whole.n_iter_ > 5 and np.array_equal(resumed.network_.theta, whole.network_.theta)
    for name in (*KEPT, "validation_loss_curve_"):
        assert getattr(resumed, name) == getattr(whole, name), name
    if not whole.early_stopping:
        for e in (whole, resumed):
            e.partial_fit(data_X, data_y)
        assert np.array_equal(resumed.network_.theta, whole.network_.theta)


def test_a_checkpoint_of_another_fit_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "run"
    clf = MLPClassifier(**SMALL, warm_start=True, callbacks=bpgpu.Checkpoint(path)).fit(X, y)
    for options, what in (
        ({"random_state": 4}, "random_state an integer"), ({"random_state": None}, "random_state an integer"),
        ({"batch_size": 7}, "batch_size"), ({"solver": "lbfgs"}, "resume goes with"), ({"solver": "sgd"}, "optimizer"),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=what):
            MLPClassifier(**{**SMALL, **options}).fit(X, y, resume=path)
    with pytest.raises(ValueError, match="data"):
        MLPClassifier(**SMALL).fit(X + 1, y, resume=path)
    clf.fit(X, y)  # which writes a checkpoint of its own
    with pytest.raises(ValueError, match="warm start"):
        MLPClassifier(**SMALL).fit(X, y, resume=path)
    with pytest.raises(FileNotFoundError):
        MLPClassifier(**SMALL).fit(X, y, resume=tmp_path / "nothing")


# -- pickles ---------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"momentum": 0.0}, {"learning_rate": "invscaling"}])
def test_a_pickled_estimator_goes_on_with_the_same_dropout(options: dict[str, Any]) -> None:
    clf = MLPClassifier(**SMALL, solver="sgd", dropout=0.5, **options).fit(X, y)
    before = set(vars(clf))
    copy = pickle.loads(pickle.dumps(clf))
    assert set(vars(clf)) == before == set(vars(copy))
    for estimator in (clf, copy):
        estimator.partial_fit(X, y).partial_fit(X, y)
    assert np.array_equal(copy.network_.theta, clf.network_.theta) and copy.loss_curve_ == clf.loss_curve_
    clf.set_params(solver="lbfgs", dropout=0.0).fit(X, y)
    assert np.array_equal(pickle.loads(pickle.dumps(clf)).predict(X), clf.predict(X))


def test_a_backend_may_be_an_object() -> None:
    """Copied with the estimator it stays the same one, and a pickle names it."""
    for backend in (bpgpu.get_backend("cpu"), CPUBackend(threads=2)):
        clf = clone(MLPClassifier(**SMALL, backend=backend)).fit(X, y)
        assert clf.network_.backend is backend
        copy = pickle.loads(pickle.dumps(clf))
        assert copy.backend is copy.network_.backend is bpgpu.get_backend("cpu")
        assert copy.partial_fit(X, y).loss_curve_ == clf.partial_fit(X, y).loss_curve_
    search = GridSearchCV(MLPClassifier(**SMALL, backend=bpgpu.get_backend("numpy")), {"alpha": [0.1, 1.0]}, cv=2).fit(X, y)
    assert search.best_estimator_.network_.backend is bpgpu.get_backend("numpy")
