"""The course of an estimator's training, as scikit-learn steers it."""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Any

import numpy as np

from .callbacks import Best, metrics_of
from .labels import CLASSIFIES

if TYPE_CHECKING:
    from .fitting import Progress
    from .optim import Optimizer


KEPT = (
    "loss_", "best_loss_", "loss_curve_", "validation_scores_", "validation_loss_curve_", "best_validation_score_", "n_iter_",
    "t_", "_waited",
)  # fmt: skip


class Course(Best):
    """What scikit-learn does after an epoch: curves, the count of epochs without improvement, the learning rate, the end."""

    measures_penalty = True

    def __init__(self, estimator: Any, held_back: tuple[Any, ...] | None) -> None:
        super().__init__(restore=estimator.early_stopping)
        self.estimator, self.held_back, self.ended = estimator, held_back, False
        self.fills = () if held_back is None else metrics_of(estimator.network_.loss)
        if held_back is not None and not estimator.validation_scores_:
            estimator.validation_scores_, estimator.validation_loss_curve_ = [], []
        if estimator.early_stopping and estimator.best_validation_score_ is None:
            estimator.best_validation_score_ = -np.inf
        if not estimator.early_stopping and estimator.best_loss_ is None:
            estimator.best_loss_ = np.inf
        self.random = int(deepcopy(estimator._random_state).randint(2**31))  # what it would give next

    def on_fit_begin(self, progress: Progress) -> None:
        if self.restore_best and self.theta is None:
            self.theta = progress.net.backend.copy(progress.net.theta)

    def on_epoch_end(self, progress: Progress) -> bool:
        e, history = self.estimator, progress.history
        e.n_iter_ += 1
        e.t_ += progress.examples
        e.loss_ = history.loss[-1] / e._averaged + history.penalty[-1]
        e.loss_curve_.append(e.loss_)
        if e.verbose:
            print(f"Iteration {e.n_iter_}, loss = {e.loss_:.8f}")
        if self.held_back is not None:
            loss, score = e._evaluated(*self.held_back)
            history.validation_loss.append(loss)
            e.validation_loss_curve_.append(loss)
            e.validation_scores_.append(score)
            if progress.net.loss in CLASSIFIES:
                history.validation_accuracy.append(score)
            if e.verbose:
                print(f"Validation score: {score:f}")
        if e.early_stopping:
            waits = score < e.best_validation_score_ + e.tol
            if score > e.best_validation_score_:
                e.best_validation_score_, self.theta = score, progress.net.backend.copy(progress.net.theta)
                history.best_epoch = progress.epoch
        else:
            waits = e.loss_ > e.best_loss_ - e.tol
            if e.loss_ < e.best_loss_:
                e.best_loss_, history.best_epoch = e.loss_, progress.epoch
        e._waited = e._waited + 1 if waits else 0
        if e.solver == "sgd" and e.learning_rate == "invscaling":
            progress.optimizer.learning_rate = e.learning_rate_init / (e.t_ + 1) ** e.power_t
        if e._waited > e.n_iter_no_change:
            self.ended, what = self._ends(progress.optimizer)
            if e.verbose:
                name = "Validation score" if e.early_stopping else "Training loss"
                print(f"{name} no better by tol={e.tol:f} for more than {e.n_iter_no_change} epochs in a row: {what}.")
        return self.ended

    def _ends(self, optimizer: Optimizer) -> tuple[bool, str]:
        """Whether too many epochs without improvement are the end, or a lower learning rate; and what is said of it."""
        if self.estimator.solver != "sgd" or self.estimator.learning_rate != "adaptive":
            return True, "stopping"
        if optimizer.rate(0) <= 1e-6:
            return True, "the learning rate is too small for another try, stopping"
        optimizer.learning_rate = optimizer.rate(0) / 5
        self.estimator._waited = 0
        return False, f"the learning rate is now {optimizer.learning_rate:f}"

    def state(self) -> dict[str, Any]:
        kept = {name: getattr(self.estimator, name) for name in KEPT if hasattr(self.estimator, name)}
        return super().state() | {"random": self.random, "ended": self.ended} | kept

    def restore(self, state: dict[str, Any]) -> None:
        if state.get("random") != self.random:
            raise ValueError(
                "the checkpoint is of a fit with other numbers at random; resume it with the same parameters, random_state an "
                "integer, and after the same fits if it was a warm start"
            )
        super().restore(state)
        self.ended = state["ended"]
        self.estimator.__dict__.update({name: state[name] for name in KEPT if name in state})
