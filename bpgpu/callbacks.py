"""What fit tells of its course, and what listens: early stopping, checkpoints, logs, a progress bar."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

from .checks import amount, count, nearest
from .files import check_writable, remove_leftovers, write_whole
from .labels import CLASSIFIES

if TYPE_CHECKING:
    from .fitting import Progress
    from .mlp import MLP

METRICS = {"loss": -1, "validation_loss": -1, "validation_accuracy": 1}  # of History; which of them are better when larger


def metrics_of(loss: str) -> list[str]:
    """Those that there are of validation data, by the network's loss."""
    return ["validation_loss", *(["validation_accuracy"] if loss in CLASSIFIES else [])]


class Callback:
    """Listens to fit.  A subclass overrides what it wants to hear; on_batch_end and on_epoch_end end the training with True."""

    saves = False  # whether it calls Progress.save
    measures_penalty = False  # whether it wants History.penalty
    fills: Sequence[str] = ()  # metrics that it adds to the history itself, after each epoch

    def on_fit_begin(self, progress: Progress) -> None:
        """Before the first step (of a resumed run: of those that are left)."""

    def on_batch_end(self, progress: Progress) -> bool | None:
        """After some steps, several times a second."""
        return None

    def on_epoch_end(self, progress: Progress) -> bool | None:
        """After each epoch, the history being complete."""
        return None

    def on_fit_end(self, progress: Progress) -> None:
        """At the end, also when Ctrl-C or an error is the end."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of it: arrays, and what JSON can say (NumPy's numbers come back as Python's)."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """Take up what state() gave in another process."""


Callbacks: TypeAlias = "Callback | Callable[[Progress], Any] | Sequence[Any] | None"  # what fit takes


class _Function(Callback):
    """A function of one Progress, called for batches and epochs."""

    def __init__(self, function: Callable[[Progress], Any]) -> None:
        self.on_batch_end = self.on_epoch_end = function  # type: ignore[method-assign, assignment]


def as_callbacks(given: Any) -> list[Callback]:
    """One or several callbacks or functions as a list of callbacks.  TypeError: it is something else."""
    given = [] if given is None else [given] if not isinstance(given, (list, tuple)) else given
    for callback in given:
        if isinstance(callback, type) or not (isinstance(callback, Callback) or callable(callback)):
            kind = callback.__name__ if isinstance(callback, type) else f"a {type(callback).__name__}"
            raise TypeError(
                f"callbacks has {kind}; expected objects such as bpgpu.EarlyStopping() or functions of one Progress"
            )
    return [callback if isinstance(callback, Callback) else _Function(callback) for callback in given]


class Best(Callback):
    """The best epoch so far: its number in the history, and its weights if they are to be restored at the end.

    monitor  "validation_accuracy", "validation_loss" or "loss"; by default the first of these that there is; or a function of
             the network whose number is the larger the better (the smaller with maximize=False)
    """

    def __init__(
        self, monitor: str | Callable[[MLP], float] | None = None, *, maximize: bool | None = None, restore: bool = True
    ) -> None:
        if monitor is not None and not callable(monitor):
            nearest(monitor, METRICS, "metric")
        self.monitor, self.maximize, self.restore_best = monitor, maximize, restore
        self.best, self.best_epoch, self.theta = -math.inf, None, None  # type: float, int | None, Any

    def check(self, metrics: Sequence[str]) -> None:
        """ValueError: what it monitors is not among the metrics of this training."""
        if isinstance(self.monitor, str) and self.monitor not in metrics:
            validated = "validation_loss" in metrics
            mend = f"another metric: {' or '.join(metrics)}" if validated else "validation_data to fit, or another metric"
            raise ValueError(f"there is no {self.monitor} to monitor; pass {mend}")

    def on_epoch_end(self, progress: Progress) -> bool | None:
        self.see(self.score(progress), progress)
        return None

    def score(self, progress: Progress) -> float:
        """The larger the better; NaN counts as the worst."""
        name, history = self.monitor, progress.history
        if callable(name):
            value, sign = float(name(progress.net)), 1
        else:
            name = name or next(n for n in reversed(METRICS) if getattr(history, n))
            value, sign = getattr(history, name)[-1], METRICS[name]
        if self.maximize is not None:
            sign = 1 if self.maximize else -1
        return -math.inf if math.isnan(value) else sign * value

    def see(self, score: float, progress: Progress) -> None:
        if score > self.best:
            self.best, self.best_epoch = score, progress.epoch
            progress.history.best_epoch = self.best_epoch
            if self.restore_best:
                self.theta = progress.net.backend.copy(progress.net.theta)

    def on_fit_end(self, progress: Progress) -> None:
        if self.theta is not None:
            progress.net.backend.write(progress.net.theta, self.theta)
            self.theta = None

    def state(self) -> dict[str, Any]:
        kept = {} if self.theta is None else {"theta": self.theta}
        return {"best": self.best, "best_epoch": self.best_epoch} | kept

    def restore(self, state: dict[str, Any]) -> None:
        self.best, self.best_epoch, self.theta = state["best"], state["best_epoch"], state.get("theta")


class EarlyStopping(Best):
    """End the training after more than `patience` epochs in a row that are no better than the best one by `min_delta`, and
    leave the weights of the best one (with restore_best=False: the last ones).  monitor, maximize: see Best.

    ValueError: an unknown metric, a negative number, a metric that this training has not.
    """

    def __init__(
        self, monitor: str | Callable[[MLP], float] | None = None, *, patience: int = 10, min_delta: float = 0.0,
        maximize: bool | None = None, restore_best: bool = True,
    ) -> None:  # fmt: skip
        super().__init__(monitor, maximize=maximize, restore=restore_best)
        self.patience, self.min_delta, self.waited = amount("patience", patience), amount("min_delta", min_delta), 0

    def on_fit_begin(self, progress: Progress) -> None:
        if progress.epoch == 0 and progress.examples == 0:
            self.best, self.best_epoch, self.theta, self.waited = -math.inf, None, None, 0

    def on_epoch_end(self, progress: Progress) -> bool | None:
        score = self.score(progress)
        better = score > self.best and score >= self.best + self.min_delta
        self.waited = 0 if better else self.waited + 1
        self.see(score, progress)
        return bool(self.waited > self.patience)

    def state(self) -> dict[str, Any]:
        return super().state() | {"waited": self.waited}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self.waited = state["waited"]


class AdaptiveRate(Callback):
    """Multiply the optimizer's learning rate by `factor` after more than `patience` epochs in a row whose loss is not lower
    than the lowest by `min_delta`; end the training once the rate is `minimum` or less.  As scikit-learn's "adaptive" does.

    ValueError: a negative number, a factor of 1 or more, a learning rate that is a schedule.
    """

    def __init__(self, factor: float = 0.2, *, patience: int = 2, min_delta: float = 1e-4, minimum: float = 1e-6) -> None:
        self.factor, self.patience, self.min_delta = amount("factor", factor), patience, amount("min_delta", min_delta)
        if factor >= 1:
            raise ValueError(f"factor is {factor!r}; expected less than 1, for example 0.2")
        amount("patience", patience)
        self.minimum = amount("minimum", minimum)
        self.lowest, self.waited = math.inf, 0

    def on_fit_begin(self, progress: Progress) -> None:
        if callable(progress.optimizer.learning_rate):
            raise ValueError("AdaptiveRate changes a learning rate that is a number; this one is a schedule")
        if progress.epoch == 0 and progress.examples == 0:
            self.lowest, self.waited = math.inf, 0

    def on_epoch_end(self, progress: Progress) -> bool | None:
        loss = progress.history.loss[-1]
        self.waited = 0 if loss < self.lowest and loss <= self.lowest - self.min_delta else self.waited + 1
        self.lowest = min(self.lowest, loss)
        if self.waited > self.patience:
            optimizer, self.waited = progress.optimizer, 0
            if optimizer.rate(0) <= self.minimum:
                return True
            optimizer.learning_rate = optimizer.rate(0) * self.factor
        return None

    def state(self) -> dict[str, Any]:
        return {"lowest": self.lowest, "waited": self.waited}

    def restore(self, state: dict[str, Any]) -> None:
        self.lowest, self.waited = state["lowest"], state["waited"]


class Checkpoint(Callback):
    """Write everything that fit(resume=path) needs, every so many seconds, or epochs, and at the end, whatever the end is: the
    last epoch, a callback's True, Ctrl-C, an error (but not a divergence: then the file is what it was).

    The file is replaced as a whole or not at all, and is a model file, too: bpgpu.load gives the network.  A run that a
    callback has ended is at its end, also when it is resumed.
    OSError: it cannot be written; that ends the training, of which the network keeps all that was learned.
    """

    saves = True

    def __init__(self, path: str | os.PathLike[str], *, seconds: float | None = 60.0, epochs: int | None = None) -> None:
        self.path = Path(path)
        self.seconds = math.inf if seconds is None else amount("seconds", seconds)
        self.epochs = None if epochs is None else count("epochs", epochs)
        self._last, self._written = 0.0, None  # type: float, int | None  # when, and of which place of the run

    def on_fit_begin(self, progress: Progress) -> None:
        check_writable(self.path, "the checkpoint")
        remove_leftovers(self.path)
        self._last, self._written = time.monotonic(), _seen(progress)

    def on_batch_end(self, progress: Progress) -> None:
        if time.monotonic() - self._last >= self.seconds:
            self.write(progress)

    def on_epoch_end(self, progress: Progress) -> None:
        if self.epochs and (progress.epoch + 1) % self.epochs == 0:
            self.write(progress)
        else:
            self.on_batch_end(progress)

    def on_fit_end(self, progress: Progress) -> None:
        try:
            if self._written not in (None, _seen(progress)):
                self.write(progress)
        finally:
            self._written = None

    def write(self, progress: Progress) -> None:
        self._written = _seen(progress)
        try:
            progress.save(self.path)
        except OSError as error:
            raise OSError(f"the checkpoint {error}; the network keeps what was learned so far") from error
        self._last = time.monotonic()


class Log(Callback):
    """A table of the history in a file, a line an epoch: CSV, or JSON lines if its name ends in .jsonl.

    OSError: it cannot be written.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)

    def on_fit_begin(self, progress: Progress) -> None:
        check_writable(self.path, "the log")

    def on_epoch_end(self, progress: Progress) -> None:
        history = progress.history
        names = [name for name in (*METRICS, "seconds") if getattr(history, name)]
        rows = [{"epoch": e + 1} | {n: getattr(history, n)[e] for n in names} for e in range(len(history.loss))]
        text = io.StringIO()
        if self.path.suffix == ".jsonl":
            text.writelines(json.dumps(row) + "\n" for row in rows)
        else:
            table = csv.DictWriter(text, ["epoch", *names], lineterminator="\n")
            table.writeheader()
            table.writerows(rows)
        write_whole(self.path, text.getvalue().encode())


class TensorBoard(Callback):
    """Loss and validation figures as TensorBoard events in a folder.  ImportError: the extra `tensorboard` is not installed."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as error:
            raise ImportError("TensorBoard events need tensorboardX: python -m pip install 'bpgpu[tensorboard]'") from error
        self._open: Callable[[], Any] = lambda: SummaryWriter(str(folder))
        self._writer: Any = None

    def on_epoch_end(self, progress: Progress) -> None:
        self._writer = self._writer or self._open()
        for name in (*METRICS, "seconds"):
            if values := getattr(progress.history, name):
                self._writer.add_scalar(name, values[-1], progress.epoch + 1)
        last_step = progress.net.trainer(progress.optimizer).steps_taken - 1
        self._writer.add_scalar("learning_rate", progress.optimizer.rate(last_step), progress.epoch + 1)

    def on_fit_end(self, progress: Progress) -> None:
        if self._writer is not None:
            self._writer.close()
            self._writer = None


class ProgressBar(Callback):
    """A progress bar on a terminal or in a notebook; elsewhere nothing, or with lines=True a line an epoch.

    In a notebook the bar needs ipywidgets; without them there is a line an epoch.
    """

    def __init__(self, *, lines: bool = False) -> None:
        self.lines, self._bar, self._task, self._begun, self._before = lines, None, None, 0.0, 0  # type: bool, Any, Any, float, int

    def on_fit_begin(self, progress: Progress) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        console = Console()
        self._lines = self.lines or console.is_jupyter
        if find_spec("ipywidgets") if console.is_jupyter else console.is_terminal:
            rate = TextColumn("{task.fields[rate]}")
            self._bar = Bar(TextColumn("{task.description}"), BarColumn(), rate, TimeRemainingColumn(), console=console)
            self._task = self._bar.add_task("", total=progress.examples_in_all, rate="")
            self._bar.start()
        self._begun, self._before = time.perf_counter(), _seen(progress)

    def on_batch_end(self, progress: Progress) -> None:
        if self._bar is not None:
            rate = f"{(_seen(progress) - self._before) / (time.perf_counter() - self._begun):,.0f} examples/s"
            self._bar.update(self._task, completed=_seen(progress), description=epoch_line(progress), rate=rate)

    def on_epoch_end(self, progress: Progress) -> None:
        self.on_batch_end(progress)
        if self._bar is None and self._lines:
            print(epoch_line(progress), flush=True)

    def on_fit_end(self, progress: Progress) -> None:
        if self._bar is not None:
            self._bar.refresh()  # which stop does not do in a notebook
            self._bar.stop()
            self._bar = None


def _seen(p: Progress) -> int:
    return (p.examples_in_all // p.epochs) * p.epoch + p.examples


def epoch_line(p: Progress) -> str:
    h = p.history
    line = f"epoch {p.epoch + 1}/{p.epochs}  loss {p.loss:.4f}"
    if h.validation_accuracy:
        line += f"  validation accuracy {h.validation_accuracy[-1]:.2%}"
    elif h.validation_loss:
        line += f"  validation loss {h.validation_loss[-1]:.4f}"
    return line
