"""MLPClassifier and MLPRegressor: scikit-learn's contract, its loss curves, its long-standing bugs, and what is added."""

from __future__ import annotations

import pickle
import re
import subprocess
import sys
import tracemalloc
import warnings
from typing import Any

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
from joblib.externals.loky import get_reusable_executor
from scipy import sparse
from sklearn import config_context, neural_network
from sklearn.base import clone
from sklearn.datasets import load_digits, load_iris, make_multilabel_classification, make_regression
from sklearn.exceptions import ConvergenceWarning, NotFittedError
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import bpgpu
from bpgpu import MLPClassifier, MLPRegressor
from tests.emulator import available
from tests.emulator.gpu import GPU

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
digits_X, digits_y = (array[:400] for array in load_digits(return_X_y=True))
digits_X = digits_X / 16
iris_X, iris_y = load_iris(return_X_y=True)
iris_X = StandardScaler().fit_transform(iris_X)
numbers_X, numbers_y = make_regression(200, 6, n_targets=3, random_state=0)
numbers_y = numbers_y / 50
labels_X, labels_y = make_multilabel_classification(150, 8, random_state=0)
SMALL: dict[str, Any] = {"hidden_layer_sizes": (16, 9), "max_iter": 12, "random_state": 3}
BOTH = pytest.mark.parametrize("kind", ["MLPClassifier", "MLPRegressor"])
DATA = {
    "classes": ("MLPClassifier", digits_X, digits_y),
    "two classes": ("MLPClassifier", digits_X, digits_y % 2),
    "several labels": ("MLPClassifier", labels_X, labels_y),
    "a number": ("MLPRegressor", numbers_X, numbers_y[:, 0]),
    "several numbers": ("MLPRegressor", numbers_X, numbers_y),
}


def data_of(kind: str) -> tuple[np.ndarray, np.ndarray]:
    return (iris_X, iris_y) if kind == "MLPClassifier" else (numbers_X, numbers_y[:, 0])


def both(kind: str, **parameters: Any) -> tuple[Any, Any]:
    """scikit-learn's estimator and ours."""
    return getattr(neural_network, kind)(**parameters), getattr(bpgpu, kind)(**parameters)


# -- scikit-learn's own checks -------------------------------------------------------------------------------------------


def all_checks_pass(estimator: Any) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(estimator, on_skip=None)
    skipped = {r["check_name"] for r in results if r["status"] == "skipped"}
    assert len(results) > 55 and all(r["status"] in ("passed", "skipped") for r in results)
    assert skipped <= {"check_array_api_input", "check_classifiers_multilabel_output_format_decision_function"}


@BOTH
@pytest.mark.parametrize("backend", ["cpu", pytest.param("numpy", marks=pytest.mark.exhaustive)])
def test_every_check_of_scikit_learn_passes(kind: str, backend: str) -> None:
    all_checks_pass(getattr(bpgpu, kind)(backend=backend))


@pytest.fixture
def emulated_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    if (why := available()) is not None:
        pytest.skip(f"no emulator here: {why}")
    from bpgpu.cuda import CUDABackend

    monkeypatch.setitem(bpgpu.devices._instances, "cuda:0", CUDABackend(GPU()))


@pytest.mark.exhaustive
@BOTH
def test_every_check_of_scikit_learn_passes_on_cuda(kind: str, emulated_cuda: None) -> None:
    all_checks_pass(getattr(bpgpu, kind)(backend="cuda"))


@BOTH
def test_cuda_gives_the_same_bits(kind: str, emulated_cuda: None) -> None:
    X, y = data_of(kind)
    here, there = (
        getattr(bpgpu, kind)(hidden_layer_sizes=(7,), max_iter=2, random_state=0, backend=b).fit(X[:60], y[:60])
        for b in ("cpu", "cuda")
    )
    assert here.loss_curve_ == there.loss_curve_ and np.array_equal(here.predict(X), there.predict(X))
    assert all(np.array_equal(*pair) for pair in zip(here.coefs_, there.coefs_, strict=True))


@BOTH
def test_precision_is_that_of_the_network(kind: str, emulated_cuda: None) -> None:
    X, y = data_of(kind)
    how: dict[str, Any] = {"hidden_layer_sizes": (16, 16), "max_iter": 2, "random_state": 0, "dtype": "float32"}
    fast = getattr(bpgpu, kind)(**how, backend="cuda", precision="tf32").fit(X[:60], y[:60])
    exact = getattr(bpgpu, kind)(**how).fit(X[:60], y[:60])
    assert fast.network_.backend.precision == "tf32" and fast.loss_curve_ != exact.loss_curve_
    np.testing.assert_allclose(fast.loss_curve_, exact.loss_curve_, rtol=0.02)
    with pytest.raises(ValueError, match="precision 'bf16' is for GPUs"):
        getattr(bpgpu, kind)(**how, precision="bf16").fit(X[:60], y[:60])
    with pytest.raises(ValueError, match="The 'precision' parameter of MLP"):
        getattr(bpgpu, kind)(**how, precision="half").fit(X[:60], y[:60])


# -- the way scikit-learn goes -------------------------------------------------------------------------------------------

SOLVERS: dict[str, dict[str, Any]] = {
    "adam": {},
    "sgd": {"solver": "sgd", "momentum": 0.0, "learning_rate_init": 0.05},
    "momentum": {"solver": "sgd", "nesterovs_momentum": False, "learning_rate_init": 0.02},
    "nesterov": {"solver": "sgd", "learning_rate_init": 0.02},
    "invscaling": {"solver": "sgd", "learning_rate": "invscaling", "learning_rate_init": 0.5, "power_t": 0.3},
    "adaptive": {
        "solver": "sgd", "learning_rate": "adaptive", "learning_rate_init": 0.2, "tol": 0.05, "n_iter_no_change": 1,
        "max_iter": 40,
    },
    "tanh": {"activation": "tanh", "alpha": 0.1},
    "logistic, whole batches": {"activation": "logistic", "batch_size": 100, "shuffle": False},
    "identity, no hidden layer": {"activation": "identity", "hidden_layer_sizes": ()},
    "early stopping": {"early_stopping": True, "n_iter_no_change": 2, "max_iter": 40, "learning_rate_init": 0.01},
    "tol": {"tol": 0.05, "n_iter_no_change": 2, "max_iter": 60, "learning_rate_init": 0.01},
}  # fmt: skip


@pytest.mark.parametrize("solver", SOLVERS)
@pytest.mark.parametrize("data", DATA)
def test_the_loss_curve_is_that_of_scikit_learn(data: str, solver: str) -> None:
    kind, X, y = DATA[data]
    theirs, ours = (e.fit(X, y) for e in both(kind, **{**SMALL, **SOLVERS[solver]}))
    assert ours.n_iter_ == theirs.n_iter_
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=0, atol=1e-9)
    for name in ("loss_", "best_loss_", "t_", "n_layers_", "n_outputs_", "out_activation_", "best_validation_score_"):
        mine, its = getattr(ours, name), getattr(theirs, name)
        assert mine == its or abs(mine - its) < 1e-9, name
    for mine, its in zip(ours.coefs_ + ours.intercepts_, theirs.coefs_ + theirs.intercepts_, strict=True):
        np.testing.assert_allclose(mine, its, rtol=0, atol=1e-8)
    if ours.early_stopping:
        np.testing.assert_allclose(ours.validation_scores_, theirs.validation_scores_, rtol=0, atol=1e-9)
    np.testing.assert_allclose(ours.predict(X), theirs.predict(X), rtol=0, atol=1e-8)
    assert ours.score(X, y) == pytest.approx(theirs.score(X, y), abs=1e-9)


@pytest.mark.parametrize("data", ["classes", "two classes", "several labels", "a number"])
@pytest.mark.parametrize("iterations", [1, 5, 15])
def test_lbfgs_is_that_of_scikit_learn(data: str, iterations: int) -> None:
    """With tanh: where a trial step saturates the outputs, scikit-learn cuts the loss off at -ln(eps), and ours is right."""
    kind, X, y = DATA[data]
    parameters = {**SMALL, "solver": "lbfgs", "activation": "tanh", "max_iter": iterations}
    theirs, ours = (e.fit(X, y) for e in both(kind, **parameters))
    assert ours.n_iter_ == theirs.n_iter_ and len(ours.loss_curve_) == ours.n_iter_
    assert abs(ours.loss_ - theirs.loss_) < 1e-9 and abs(ours.loss_curve_[-1] - theirs.loss_) < 1e-9


def test_lbfgs_of_several_numbers_minimizes_what_it_says() -> None:
    """scikit-learn hands L-BFGS the mean over the outputs with the gradient of the sum; ours are of one function."""
    theirs, ours = (
        e.fit(numbers_X, numbers_y) for e in both("MLPRegressor", **{**SMALL, "solver": "lbfgs", "max_iter": 200, "alpha": 1.0})
    )
    assert ours.loss_ <= theirs.loss_ * 1.05 and (np.diff(ours.loss_curve_) < 0).all()


@pytest.mark.parametrize("data", ["classes", "several numbers"])
@pytest.mark.parametrize("solver", ["adam", "sgd", "lbfgs"])
def test_sample_weights_are_those_of_scikit_learn(data: str, solver: str) -> None:
    kind, X, y = DATA[data]
    if solver == "lbfgs" and kind == "MLPRegressor":
        y = y[:, 0]
    weight = np.random.default_rng(0).integers(0, 4, len(X)) / 2
    early = {"early_stopping": solver == "adam", "activation": "tanh"}
    theirs, ours = (e.fit(X, y, sample_weight=weight) for e in both(kind, **SMALL, solver=solver, **early))
    assert abs(ours.loss_ - theirs.loss_) < 1e-9
    if solver != "lbfgs":
        np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=0, atol=1e-9)


def test_the_dtype_is_that_of_X_as_in_scikit_learn_or_the_one_asked_for() -> None:
    for dtype, given, expected in (
        (None, np.float32, np.float32), (None, np.float64, np.float64), (None, np.int64, np.float64),
        ("float32", np.float64, np.float32), ("float64", np.float32, np.float64),
    ):  # fmt: skip
        clf = MLPClassifier(**SMALL, dtype=dtype).fit(iris_X.astype(given), iris_y)
        assert {array.dtype for array in clf.coefs_ + clf.intercepts_} == {np.dtype(expected)}
    theirs, ours = (e.fit(digits_X.astype(np.float32), digits_y) for e in both("MLPClassifier", **SMALL))
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=1e-4)


@BOTH
def test_warm_start_goes_the_way_of_scikit_learn(kind: str) -> None:
    X, y = data_of(kind)
    estimators = both(kind, **{**SMALL, "max_iter": 4}, warm_start=True)
    for _ in range(3):
        for e in estimators:
            e.fit(X, y)
    theirs, ours = estimators
    assert len(ours.loss_curve_) == 12
    np.testing.assert_allclose(ours.loss_curve_, theirs.loss_curve_, rtol=0, atol=1e-9)


@BOTH
def test_early_stopping_leaves_the_weights_of_the_best_epoch(kind: str) -> None:
    X, y = data_of(kind)
    best: dict[str, Any] = {"score": -np.inf}

    def watch(progress: bpgpu.Progress) -> None:
        if progress.epoch_ended and ours.validation_scores_[-1] > best["score"]:
            best.update(score=ours.validation_scores_[-1], theta=progress.net.theta.copy())

    ours = getattr(bpgpu, kind)(
        hidden_layer_sizes=(16,),
        random_state=1,
        early_stopping=True,
        learning_rate_init=0.05,
        n_iter_no_change=5,
        callbacks=watch,
    )
    ours.fit(X, y)
    assert ours.n_iter_ > int(np.argmax(ours.validation_scores_)) + 1
    assert np.array_equal(ours.network_.theta, best["theta"]) and ours.best_validation_score_ == best["score"]


VERBOSE: dict[str, dict[str, Any]] = {
    "loss": {"tol": 0.05, "n_iter_no_change": 3, "max_iter": 60},
    "score": {"early_stopping": True, "n_iter_no_change": 2, "learning_rate_init": 0.01, "max_iter": 40},
    "adaptive": {"solver": "sgd", "learning_rate": "adaptive", "learning_rate_init": 0.2, "tol": 0.5, "n_iter_no_change": 1},
    "adaptive score": {
        "solver": "sgd", "learning_rate": "adaptive", "learning_rate_init": 1e-4, "early_stopping": True, "n_iter_no_change": 1,
    },
    "max_iter": {"max_iter": 3},
}  # fmt: skip


@pytest.mark.parametrize("case", VERBOSE)
def test_verbose_says_what_scikit_learn_says(case: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Line by line with the same numbers: losses and scores, why it ends, and how the learning rate falls."""
    outputs = []
    for e in both("MLPClassifier", **{**SMALL, "max_iter": 200, "verbose": True, **VERBOSE[case]}):
        e.fit(iris_X, iris_y)
        outputs.append(capsys.readouterr().out.splitlines())
    theirs, ours = outputs
    assert [re.findall(r"[\d.]+\d", line) for line in ours] == [re.findall(r"[\d.]+\d", line) for line in theirs]
    for what in ("Iteration", "Validation score", "Training loss", "topping", "too small", "earning rate"):
        assert [what in line for line in ours] == [what in line for line in theirs], what
    assert (case == "max_iter") or "stopping" in ours[-1]


# -- bugs that scikit-learn had for years ----------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("early_stopping", [False, True])
def test_each_warm_fit_is_max_iter_epochs_and_n_iter_counts_its_own(kind: str, early_stopping: bool) -> None:
    """scikit-learn 8713, 16812, 24764, 25522."""
    X, y = data_of(kind)
    e = getattr(bpgpu, kind)(
        hidden_layer_sizes=(8,),
        max_iter=5,
        warm_start=True,
        early_stopping=early_stopping,
        n_iter_no_change=100,
        random_state=0,
    )
    for k in range(1, 4):
        with pytest.warns(ConvergenceWarning, match="max_iter=5"):
            e.fit(X, y)
        assert e.n_iter_ == 5 and len(e.loss_curve_) == 5 * k
    e.set_params(max_iter=7)
    with pytest.warns(ConvergenceWarning, match="max_iter=7"):
        e.fit(X, y)
    assert e.n_iter_ == 7 and len(e.loss_curve_) == 22


@BOTH
def test_weights_that_are_assigned_are_where_a_warm_fit_begins(kind: str) -> None:
    """scikit-learn 8713: coefs_ provided."""
    X, y = data_of(kind)
    first = getattr(bpgpu, kind)(hidden_layer_sizes=(8,), max_iter=1, random_state=0).fit(X, y)
    e = getattr(bpgpu, kind)(hidden_layer_sizes=(8,), max_iter=3, random_state=5, warm_start=True, shuffle=False).fit(X, y)
    other = clone(e).fit(X, y)
    for estimator in (e, other):
        estimator.coefs_, estimator.intercepts_ = first.coefs_, first.intercepts_
    assert np.array_equal(e.predict(X), first.predict(X))
    other.coefs_[0][:] = 0  # the weights themselves, not copies
    assert not other.network_.weights[0].any()
    other.coefs_ = first.coefs_
    assert e.fit(X, y).n_iter_ == 3
    assert e.loss_curve_[3:] == other.fit(X, y).loss_curve_[3:]
    with pytest.raises(ValueError, match="shapes"):
        e.coefs_ = [first.coefs_[0].T, first.coefs_[1]]


@BOTH
def test_partial_fit_and_early_stopping(kind: str) -> None:
    """scikit-learn 25693: a sentence, not a broken attribute; and without early stopping it goes on from fit."""
    X, y = data_of(kind)
    e = getattr(bpgpu, kind)(hidden_layer_sizes=(8,), max_iter=3, early_stopping=True, random_state=0).fit(X, y)
    theta = e.network_.theta.copy()
    with pytest.raises(ValueError, match="early_stopping"):
        e.partial_fit(X, y)
    assert np.array_equal(e.network_.theta, theta)
    assert len(e.set_params(early_stopping=False).partial_fit(X, y).loss_curve_) == 4 and e.best_loss_ == e.loss_


def test_partial_fit_of_several_labels() -> None:
    """scikit-learn 12505: with or without classes, and an epoch is that of fit."""
    once = MLPClassifier(hidden_layer_sizes=(20,), max_iter=1, random_state=1).fit(labels_X, labels_y)
    for classes in (None, range(5)):
        part = MLPClassifier(hidden_layer_sizes=(20,), random_state=1).partial_fit(labels_X, labels_y, classes=classes)
        assert part.loss_curve_ == once.loss_curve_ and np.array_equal(part.predict(labels_X), once.predict(labels_X))
        assert part.predict(labels_X).shape == labels_y.shape


@pytest.mark.parametrize("solver", ["adam", "sgd"])
@BOTH
def test_calls_of_partial_fit_are_epochs_of_fit(kind: str, solver: str) -> None:
    """scikit-learn 12505, again: also the optimizer goes on; and each call has an order of its own."""
    X, y = data_of(kind)
    named = {"classes": np.unique(y)} if kind == "MLPClassifier" else {}
    options = {"hidden_layer_sizes": (8,), "random_state": 0, "solver": solver, "batch_size": 40}
    whole = getattr(bpgpu, kind)(**options, max_iter=4, shuffle=False).fit(X, y)
    parts = getattr(bpgpu, kind)(**options, shuffle=False)
    shuffled = getattr(bpgpu, kind)(**options)
    orders = []
    for _ in range(4):
        parts.partial_fit(X, y, **named)
        shuffled.partial_fit(X, y, **named)
        orders.append(shuffled._random_state.get_state()[2])
    assert parts.loss_curve_ == whole.loss_curve_ and np.array_equal(parts.network_.theta, whole.network_.theta)
    assert len(set(orders)) == 4


def test_partial_fit_of_classes_that_come_later() -> None:
    clf = MLPClassifier(hidden_layer_sizes=(8,), random_state=0)
    with pytest.raises(ValueError, match="classes must be passed"):
        clf.partial_fit(iris_X[:50], iris_y[:50])
    clf.partial_fit(iris_X[:50], iris_y[:50], classes=[2, 0, 1]).partial_fit(iris_X[50:], iris_y[50:])
    assert clf.predict_proba(iris_X).shape == (150, 3) and list(clf.classes_) == [0, 1, 2]
    with pytest.raises(ValueError, match=r"not in `self.classes_`: \[7\]"):
        clf.partial_fit(iris_X, np.full(150, 7))
    with pytest.raises(AttributeError, match="partial_fit"):
        MLPClassifier(solver="lbfgs").partial_fit(iris_X, iris_y, classes=[0, 1, 2])
    assert not hasattr(MLPRegressor(solver="lbfgs"), "partial_fit")


# -- data ----------------------------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("form", [sparse.csr_array, sparse.csc_matrix, sparse.coo_array])
def test_sparse_data_give_the_bits_of_dense_data(kind: str, form: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bpgpu.epochs.SLAB_BYTES", 40_000)  # several slabs an epoch
    _, y = data_of(kind)
    X = digits_X[: len(y)]
    for extra in ({}, {"early_stopping": True}, {"batch_size": 33, "shuffle": False}):
        parameters = {**SMALL, "max_iter": 3, **extra}
        dense, rows = (getattr(bpgpu, kind)(**parameters).fit(data, y) for data in (X, form(X)))
        assert rows.loss_curve_ == dense.loss_curve_ and np.array_equal(rows.network_.theta, dense.network_.theta)
        assert np.array_equal(rows.predict(form(X)), dense.predict(X))
    lbfgs = [getattr(bpgpu, kind)(**SMALL, solver="lbfgs", activation="tanh").fit(data, y) for data in (X, form(X))]
    assert abs(lbfgs[0].loss_ - lbfgs[1].loss_) < 1e-9


def test_a_sparse_matrix_is_never_dense_as_a_whole(rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bpgpu.epochs.SLAB_BYTES", 1 << 23)
    n, features = 24_000, 2500  # 240 MB as float32
    X = sparse.random_array((n, features), density=0.001, format="csr", dtype=np.float32, rng=rng)
    y = rng.integers(0, 2, n)
    clf = MLPClassifier(hidden_layer_sizes=(4,), max_iter=1, batch_size=64, random_state=0, early_stopping=True)
    tracemalloc.start()
    clf.fit(X, y)
    clf.predict(X)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 80e6 and np.isfinite(clf.loss_)  # a third of that


def test_labels_may_be_strings_and_frames_have_names() -> None:
    names = np.array(["setosa", "versicolor", "virginica"], dtype=object)[iris_y]
    columns = ["a", "b", "c", "d"]
    numbers = MLPClassifier(**SMALL).fit(iris_X, iris_y)
    for frame in (pd.DataFrame(iris_X, columns=columns), pl.DataFrame(iris_X, schema=columns)):
        clf = MLPClassifier(**SMALL).fit(frame, names)
        theirs = neural_network.MLPClassifier(hidden_layer_sizes=(2,), max_iter=1).fit(frame, names)
        assert list(getattr(clf, "feature_names_in_", [])) == list(getattr(theirs, "feature_names_in_", []))
        assert clf.loss_curve_ == numbers.loss_curve_
        assert set(clf.predict(frame)) <= {"setosa", "versicolor", "virginica"}
        assert np.array_equal(clf.predict(frame), np.unique(names)[numbers.predict(iris_X)])
    with pytest.raises(ValueError, match="feature names"):
        MLPClassifier(**SMALL).fit(pd.DataFrame(iris_X, columns=columns), names).predict(
            pd.DataFrame(iris_X, columns=columns[::-1])
        )


def test_a_class_alone_is_what_is_predicted() -> None:
    clf = MLPClassifier(**SMALL).fit(iris_X, np.full(150, "same"))
    assert set(clf.predict(-9 * iris_X)) == {"same"} and np.array_equal(clf.predict_proba(iris_X), np.ones((150, 1)))


@pytest.mark.parametrize("data", ["classes", "two classes", "several labels"])
def test_probabilities_are_those_of_scikit_learn(data: str) -> None:
    kind, X, y = DATA[data]
    theirs, ours = (e.fit(X, y) for e in both(kind, **SMALL))
    np.testing.assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-9)
    np.testing.assert_allclose(ours.predict_log_proba(X), np.log(ours.predict_proba(X)))


# -- as part of scikit-learn ---------------------------------------------------------------------------------------------


def test_pipelines_searches_and_clones() -> None:
    steps = make_pipeline(
        StandardScaler().set_output(transform="pandas"), MLPClassifier(learning_rate_init=0.01, max_iter=40, random_state=0)
    )
    search = GridSearchCV(steps, {"mlpclassifier__alpha": [1e-4, 1.0], "mlpclassifier__activation": ["relu", ("gelu",)]}, cv=3)
    search.fit(pd.DataFrame(iris_X, columns=list("abcd")), iris_y)
    assert search.best_score_ > 0.9 and len(search.cv_results_["params"]) == 4
    assert list(search.best_estimator_[-1].feature_names_in_) == list("abcd")
    assert cross_val_score(MLPRegressor(solver="lbfgs", max_iter=300, random_state=0), numbers_X, numbers_y[:, 0]).mean() > 0.8
    parameters = {"hidden_layer_sizes": (3, 4), "dropout": 0.2, "class_weight": {0: 2.0}, "dtype": "float32"}
    copy = clone(MLPClassifier(**parameters).fit(iris_X, iris_y))
    assert not hasattr(copy, "network_") and {k: copy.get_params()[k] for k in parameters} == parameters
    assert "dropout=0.2" in repr(copy)


def test_a_search_in_two_processes_finds_the_same() -> None:
    """Estimators go there pickled, with their callbacks, and the best one comes back."""
    clf = MLPClassifier(**{**SMALL, "max_iter": 4}, callbacks=bpgpu.EarlyStopping("loss", patience=3))
    alone, two = (GridSearchCV(clf, {"alpha": [1e-4, 9.0]}, cv=2, n_jobs=n).fit(iris_X, iris_y) for n in (1, 2))
    get_reusable_executor().shutdown()
    assert np.array_equal(alone.cv_results_["mean_test_score"], two.cv_results_["mean_test_score"])
    assert alone.best_estimator_.loss_curve_ == two.best_estimator_.loss_curve_


def test_sample_weights_are_routed() -> None:
    weight = np.where(iris_y == 0, 0.0, 1.0)
    by_hand = MLPClassifier(**SMALL).fit(iris_X, iris_y, sample_weight=weight)
    with config_context(enable_metadata_routing=True):
        clf = MLPClassifier(**SMALL).set_fit_request(sample_weight=True).set_score_request(sample_weight=True)
        steps = make_pipeline(StandardScaler().set_fit_request(sample_weight=False), clf)
        search = GridSearchCV(steps, {"mlpclassifier__alpha": [1e-4]}, cv=3).fit(iris_X, iris_y, sample_weight=weight)
        steps.fit(iris_X, iris_y, sample_weight=weight)
    for fitted in (steps, search.best_estimator_):
        np.testing.assert_allclose(fitted[-1].loss_curve_, by_hand.loss_curve_)
    folds = StratifiedKFold(3).split(iris_X, iris_y)
    scores = [
        MLPClassifier(**SMALL).fit(iris_X[a], iris_y[a], weight[a]).score(iris_X[b], iris_y[b], weight[b]) for a, b in folds
    ]
    assert search.best_score_ == pytest.approx(np.mean(scores), abs=0.02)


def test_a_pipeline_whose_steps_give_frames() -> None:
    frames = make_pipeline(StandardScaler(), MLPClassifier(**SMALL)).set_output(transform="pandas").fit(iris_X, iris_y)
    arrays = make_pipeline(StandardScaler(), MLPClassifier(**SMALL)).fit(iris_X, iris_y)
    assert list(frames[-1].feature_names_in_) == ["x0", "x1", "x2", "x3"] and not hasattr(arrays[-1], "feature_names_in_")
    assert frames[-1].loss_curve_ == arrays[-1].loss_curve_
    assert np.array_equal(frames.predict_proba(iris_X), arrays.predict_proba(iris_X))


def test_a_clone_has_callbacks_of_its_own(tmp_path: Any) -> None:
    def stop(progress: bpgpu.Progress) -> bool:
        return progress.epoch_ended and progress.epoch == 4

    callbacks = [bpgpu.EarlyStopping("loss"), bpgpu.Checkpoint(tmp_path / "run", epochs=1), bpgpu.ProgressBar(), stop]
    clf = MLPClassifier(**SMALL, callbacks=callbacks)
    copy = clone(clf).fit(iris_X, iris_y)
    assert copy.n_iter_ == 5 and copy.callbacks[0].best_epoch == 4 and callbacks[0].best_epoch is None
    assert copy.callbacks[3] is stop and (tmp_path / "run").exists() and clf.get_params()["callbacks"] is callbacks


@BOTH
def test_a_pickled_estimator_predicts_and_goes_on_to_the_same_bits(kind: str, tmp_path: Any) -> None:
    X, y = data_of(kind)
    e = getattr(bpgpu, kind)(hidden_layer_sizes=(8,), max_iter=3, random_state=0).fit(X, y)
    joblib.dump(e, tmp_path / "model.joblib")
    for copy in (pickle.loads(pickle.dumps(e)), joblib.load(tmp_path / "model.joblib")):
        assert np.array_equal(copy.predict(X), e.predict(X)) and copy.coefs_[0] is not e.coefs_[0]
    for estimator in (e, copy):
        estimator.partial_fit(X, y).partial_fit(X, y)
    assert np.array_equal(copy.network_.theta, e.network_.theta) and copy.loss_curve_ == e.loss_curve_


def test_a_pickled_network_is_on_the_cpu_where_its_device_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    net = bpgpu.MLP([3, 4, 2], seed=1)
    state = net.__getstate__() | {"backend": ("cuda:9", "exact")}
    monkeypatch.setattr("bpgpu.devices._open", lambda *_: (_ for _ in ()).throw(bpgpu.BackendUnavailable("no CUDA here")))
    other = bpgpu.MLP.__new__(bpgpu.MLP)
    with pytest.warns(UserWarning, match="on the CPU now, .*: no CUDA here"):
        other.__setstate__(state)
    assert np.array_equal(other.theta, net.theta) and other.backend.name == "cpu"
    other.weights[0][:] = 0
    assert not other.theta[:12].any() and net.theta[:12].any()


def test_scikit_learn_is_not_imported_until_it_is_needed_and_missed_by_name() -> None:
    code = (
        "import sys, bpgpu; from bpgpu import *; assert {'MLPClassifier', 'MLPRegressor', 'MLP'} <= set(dir(bpgpu))\n"
        "assert not {'sklearn', 'scipy'} & set(sys.modules); sys.modules['sklearn'] = None\n"
        "try: bpgpu.MLPClassifier\nexcept ImportError as error: print(error)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert "pip install 'bpgpu[sklearn]'" in result.stdout
    with pytest.raises(AttributeError, match="no attribute 'MLPClusterer'"):
        bpgpu.MLPClusterer  # noqa: B018


# -- what scikit-learn has not -------------------------------------------------------------------------------------------


@BOTH
def test_validation_data_of_ones_own(kind: str) -> None:
    X, y = data_of(kind)
    train, held_back = slice(0, None, 2), slice(1, None, 2)
    scores = []
    e = getattr(bpgpu, kind)(**{**SMALL, "max_iter": 30})
    e.set_params(callbacks=lambda p: scores.append(e.score(X[held_back], y[held_back])) if p.epoch_ended else None)
    e.fit(X[train], y[train], X_val=X[held_back], y_val=y[held_back])
    assert e.validation_scores_ == pytest.approx(scores) and len(e.validation_loss_curve_) == e.n_iter_
    plain = getattr(bpgpu, kind)(**{**SMALL, "max_iter": 30}).fit(X[train], y[train])
    assert plain.loss_curve_ == e.loss_curve_ and plain.validation_scores_ is None
    e.set_params(early_stopping=True, tol=0.01, n_iter_no_change=2, max_iter=200, callbacks=None)
    e.fit(X[train], y[train], X_val=X[held_back], y_val=y[held_back])
    assert e.n_iter_ < 200 and e.score(X[held_back], y[held_back]) == pytest.approx(e.best_validation_score_)
    assert e.loss_curve_[:30] == plain.loss_curve_[: e.n_iter_]  # all of the training data
    with pytest.raises(ValueError, match="X_val and y_val go together"):
        e.fit(X, y, X_val=X)


def test_weights_of_validation_data_count() -> None:
    weight = np.zeros(150)
    weight[:50] = 2
    options = {**SMALL, "max_iter": 3}
    a = MLPClassifier(**options).fit(iris_X, iris_y, X_val=iris_X, y_val=iris_y, sample_weight_val=weight)
    b = MLPClassifier(**options).fit(iris_X, iris_y, X_val=iris_X[:50], y_val=iris_y[:50])
    assert a.validation_scores_ == b.validation_scores_
    np.testing.assert_allclose(a.validation_loss_curve_, b.validation_loss_curve_, rtol=1e-12)


def test_class_weights_are_sample_weights() -> None:
    names = np.array(["a", "b", "c"])[iris_y]
    by_hand = MLPClassifier(**SMALL).fit(iris_X, names, sample_weight=np.choose(iris_y, [1.0, 5.0, 0.5]))
    assert MLPClassifier(**SMALL, class_weight={"b": 5.0, "c": 0.5}).fit(iris_X, names).loss_curve_ == by_hand.loss_curve_
    X, y = iris_X[:110], iris_y[:110]  # 50, 50 and 10
    balanced = MLPClassifier(**SMALL, class_weight="balanced").fit(X, y)
    weight = np.choose(y, [110 / 150, 110 / 150, 110 / 30])
    np.testing.assert_allclose(balanced.loss_curve_, MLPClassifier(**SMALL).fit(X, y, sample_weight=weight).loss_curve_)
    with pytest.raises(ValueError, match="needs all data"):
        balanced.partial_fit(X, y)


def test_dropout_activations_callbacks_and_the_network_itself() -> None:
    seen: list[bpgpu.Progress] = []
    options: dict[str, Any] = {**SMALL, "activation": ("gelu", "tanh"), "dropout": 0.3, "max_iter": 9}
    clf = MLPClassifier(
        **options, callbacks=[lambda p: seen.append(p) if p.epoch_ended else None, lambda p: p.epoch_ended and p.epoch == 4]
    )
    clf.fit(digits_X, digits_y)
    assert clf.n_iter_ == 5 and [p.epoch for p in seen] == list(range(5))
    assert clf.network_.activations == ("gelu", "tanh") and clf.network_.dropout == (0.0, 0.3, 0.3)
    again = MLPClassifier(**options).fit(digits_X, digits_y)
    assert again.loss_curve_[:5] == clf.loss_curve_
    assert MLPClassifier(**{**options, "dropout": 0.0}).fit(digits_X, digits_y).loss_ != again.loss_
    assert clf.network_.forward(digits_X[:5]).a[1].shape == (5, 16)


@pytest.mark.parametrize("metric", ["validation_loss", "validation_accuracy"])
def test_callbacks_monitor_the_validation_data(metric: str) -> None:
    stopping = bpgpu.EarlyStopping(metric, patience=1)
    clf = MLPClassifier(**{**SMALL, "max_iter": 200, "tol": 0.0, "learning_rate_init": 0.05}, callbacks=stopping)
    clf.fit(iris_X[::2], iris_y[::2], X_val=iris_X[1::2], y_val=iris_y[1::2])
    curve = clf.validation_loss_curve_ if metric == "validation_loss" else clf.validation_scores_
    best = int(np.argmin(curve) if metric == "validation_loss" else np.argmax(curve))
    assert best == stopping.best_epoch == clf.n_iter_ - 3 < 196
    assert clf.score(iris_X[1::2], iris_y[1::2]) == clf.validation_scores_[best]
    clf = MLPClassifier(**SMALL, early_stopping=True, callbacks=bpgpu.EarlyStopping(metric)).fit(iris_X, iris_y)
    assert clf.callbacks.best_epoch is not None


def test_a_metric_that_there_will_not_be_is_refused_before_any_work() -> None:
    wrong: list[tuple[Any, str, dict[str, Any], str]] = [
        (MLPClassifier(**SMALL), "validation_loss", {}, "pass validation_data to fit, or another metric"),
        (MLPRegressor(**SMALL), "validation_accuracy", {}, "pass validation_data to fit, or another metric"),
        (
            MLPRegressor(**SMALL),
            "validation_accuracy",
            {"X_val": numbers_X, "y_val": numbers_y},
            "pass another metric: loss or",
        ),
    ]
    for e, metric, validation, message in wrong:
        X, y = (iris_X, iris_y) if isinstance(e, MLPClassifier) else (numbers_X, numbers_y)
        e.set_params(callbacks=bpgpu.EarlyStopping(metric))
        with pytest.raises(ValueError, match=f"^there is no {metric} to monitor; {message}"):
            e.fit(X, y, **validation)
        assert e.network_.epochs_trained == 0 and e.loss_curve_ == []


@pytest.mark.parametrize("loss", ["absolute_error", "huber"])
def test_other_losses_of_a_regression(loss: str) -> None:
    e = MLPRegressor(loss, hidden_layer_sizes=(32,), max_iter=300, learning_rate_init=0.01, random_state=0)
    assert e.fit(numbers_X, numbers_y[:, 0]).score(numbers_X, numbers_y[:, 0]) > 0.9


def test_ctrl_c_keeps_what_was_learned() -> None:
    def interrupt(progress: bpgpu.Progress) -> None:
        if progress.epoch == 2:
            raise KeyboardInterrupt

    clf = MLPClassifier(**SMALL, callbacks=interrupt)
    with pytest.warns(UserWarning, match="interrupted"):
        clf.fit(iris_X, iris_y)
    assert len(clf.loss_curve_) == 3 and clf.predict(iris_X).shape == (150,)


def test_a_loss_that_is_not_finite_says_where() -> None:
    with pytest.raises(bpgpu.Diverged, match="lower the learning rate"):
        MLPRegressor(solver="sgd", learning_rate_init=1e6, max_iter=50, random_state=0).fit(numbers_X, numbers_y)
    with pytest.raises(bpgpu.Diverged, match="scale X and y"):
        MLPRegressor(solver="lbfgs", dtype="float32", random_state=0).fit(numbers_X * 1e30, numbers_y * 1e30)


def test_bad_parameters_and_data_are_sentences() -> None:
    for parameters, what in (
        ({"activation": "rleu"}, "activation"), ({"dropout": 1.0}, "dropout"), ({"backend": "gpu"}, "unknown backend 'gpu'"),
        ({"hidden_layer_sizes": (0,)}, "positive integers"), ({"activation": ("relu",)}, "1 activations for 2 hidden layers"),
        ({"solver": "lbfgs", "dropout": 0.5}, "dropout goes with"), ({"momentum": 1.0}, "momentum"),
        ({"dtype": "int8"}, "dtype"), ({"callbacks": 3}, "callbacks"),
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError), match=what):
            MLPClassifier(**{**SMALL, **parameters}).fit(iris_X, iris_y)
    several = np.stack([iris_y, iris_y], axis=1)
    for fit in (
        lambda clf: clf.fit(iris_X, several), lambda clf: clf.partial_fit(iris_X, several, classes=[0, 1, 2]),
        lambda clf: clf.fit(iris_X, iris_y).partial_fit(iris_X, several),
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"^y has 2 columns of several classes each; expected labels \(n,\), or .*\)$"):
            fit(MLPClassifier(**SMALL))
    with pytest.raises(ValueError, match=r"^y has the shape \(150, 2\); expected one label a row$"):
        MLPClassifier(**SMALL).fit(iris_X, iris_y, X_val=iris_X, y_val=several)
    with pytest.raises(NotFittedError):
        MLPRegressor().predict(iris_X)
    with pytest.raises(ValueError, match="same classes"):
        MLPClassifier(**SMALL, warm_start=True).fit(iris_X, iris_y).fit(iris_X[:100], iris_y[:100])
    with pytest.raises(ValueError, match="3 numbers a row"):
        MLPRegressor(**SMALL, warm_start=True).fit(numbers_X, numbers_y).fit(numbers_X, numbers_y[:, 0])
    with pytest.raises(ValueError, match="hidden_layer_sizes is 5"):
        MLPClassifier(**SMALL, warm_start=True).fit(iris_X, iris_y).set_params(hidden_layer_sizes=5).fit(iris_X, iris_y)
    with pytest.raises(ValueError, match=r"X_val goes with .* 'lbfgs' has no epochs"):
        MLPClassifier(solver="lbfgs").fit(iris_X, iris_y, X_val=iris_X, y_val=iris_y)
    with pytest.raises(ValueError, match=r"callbacks goes with .* 'lbfgs' has no epochs"):
        MLPClassifier(solver="lbfgs", callbacks=[lambda progress: None]).fit(iris_X, iris_y)
    with pytest.warns(UserWarning, match="batch_size=999 is cut"):
        MLPClassifier(**SMALL, batch_size=999).fit(iris_X, iris_y)


# -- conversions ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("activation", ["relu", "logistic"])
@pytest.mark.parametrize("data", DATA)
def test_fitted_estimators_go_over_to_scikit_learn_and_back(data: str, activation: str) -> None:
    kind, X, y = DATA[data]
    theirs, ours = (e.fit(X, y) for e in both(kind, **SMALL, activation=activation))
    there, here = bpgpu.to_sklearn(ours), bpgpu.from_sklearn(theirs)
    assert type(there) is type(theirs) and type(here) is type(ours)
    for a, b in ((there, ours), (here, theirs), (bpgpu.from_sklearn(there), ours), (bpgpu.to_sklearn(here), theirs)):
        np.testing.assert_allclose(a.predict(X), b.predict(X), rtol=0, atol=1e-9)
        if kind == "MLPClassifier":
            np.testing.assert_allclose(a.predict_proba(X), b.predict_proba(X), rtol=0, atol=1e-9)
        assert a.loss_curve_ == b.loss_curve_ and a.n_iter_ == b.n_iter_ and a.n_features_in_ == b.n_features_in_
    for a, b in ((there, ours), (here, theirs)):
        assert a.activation == b.activation and a.get_params()["alpha"] == b.alpha
        a.set_params(warm_start=True).fit(X, y)
        b.set_params(warm_start=True).fit(X, y)
        np.testing.assert_allclose(a.loss_curve_, b.loss_curve_, rtol=0, atol=1e-9)
        a.partial_fit(X, y)


def test_names_of_classes_and_features_go_over() -> None:
    frame = pd.DataFrame(iris_X, columns=list("abcd"))
    ours = MLPClassifier(**SMALL).fit(frame, np.array(["x", "y", "z"])[iris_y])
    theirs = bpgpu.to_sklearn(ours)
    assert list(theirs.classes_) == ["x", "y", "z"] and list(theirs.feature_names_in_) == list("abcd")
    assert np.array_equal(theirs.predict(frame), ours.predict(frame))
    assert np.array_equal(bpgpu.from_sklearn(theirs, dtype="float32").predict(frame), ours.predict(frame))


def test_what_cannot_go_over_is_said() -> None:
    for estimator, what in (
        (MLPClassifier(**SMALL, activation="gelu").fit(iris_X, iris_y), "gelu"),
        (MLPRegressor("huber", max_iter=2).fit(numbers_X, numbers_y), "huber"),
    ):
        with pytest.raises(ValueError, match=what):
            bpgpu.to_sklearn(estimator)
    with pytest.raises(TypeError, match="MLPClassifier"):
        bpgpu.from_sklearn(StandardScaler())
    with pytest.raises(TypeError, match="MLPRegressor"):
        bpgpu.to_sklearn(neural_network.MLPRegressor())
    with pytest.raises(NotFittedError):
        bpgpu.from_sklearn(neural_network.MLPRegressor())
    poisson = neural_network.MLPRegressor(loss="poisson", max_iter=2).fit(numbers_X, np.abs(numbers_y[:, 0]))
    with pytest.raises(ValueError, match="loss"):
        bpgpu.from_sklearn(poisson)


# -- what MLP.fit has for it -----------------------------------------------------------------------------------------------


def test_an_order_of_ones_own() -> None:
    def trained(shuffle: Any) -> np.ndarray:
        net = bpgpu.MLP([64, 8, 10], seed=0)
        net.fit(digits_X, digits_y, epochs=2, shuffle=shuffle)
        return net.theta

    assert np.array_equal(trained(lambda epoch: np.arange(400)), trained(False))
    assert not np.array_equal(trained(lambda epoch: np.roll(np.arange(400), 128 * epoch + 5)), trained(False))
    for bad in (np.arange(399), np.zeros(400, int), np.arange(1, 401), np.arange(400.0)):
        with pytest.raises(ValueError, match=r"0 \.\. 399"):
            trained(lambda epoch, bad=bad: bad)


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_the_penalty_is_measured_before_each_step(backend: str) -> None:
    class Measures(bpgpu.Callback):
        measures_penalty = True

    net = bpgpu.MLP([64, 30, 10], dtype="float64", seed=0, backend=backend)
    other = bpgpu.MLP([64, 30, 10], dtype="float64", seed=0, backend=backend)
    optimizer, weights = bpgpu.SGD(0.1, weight_decay=0.3, average_penalties=True), 64 * 30 + 30 * 10
    history = net.fit(digits_X, digits_y, epochs=2, batch_size=150, optimizer=optimizer, shuffle=False, callbacks=Measures())
    expected, same = [], bpgpu.SGD(0.1, weight_decay=0.3, average_penalties=True)
    for _ in range(2):
        total = 0.0
        for s in range(0, 400, 150):
            total += 0.15 * np.sum(other.theta[:weights] ** 2)
            other.train_step(digits_X[s : s + 150], digits_y[s : s + 150], same)
        expected.append(total / 400)
    np.testing.assert_allclose(history.penalty, expected, rtol=1e-12)
    assert net.fit(digits_X, digits_y, epochs=1).penalty == []
