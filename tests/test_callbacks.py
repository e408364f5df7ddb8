"""What listens to a training: early stopping, learning rates that fall, logs, the progress bar; and schedules."""

from __future__ import annotations

import builtins
import csv
import io
import json
import math
import sys
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest

import bpgpu
from bpgpu import MLP, SGD, AdaptiveRate, Callback, EarlyStopping, Log, ProgressBar, schedules


def data(n: int = 60) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, n)
    return 2 * np.eye(3, 6)[y] + rng.standard_normal((n, 6)), y


def network(seed: int = 1) -> MLP:
    return MLP([6, 9, 3], activation="tanh", seed=seed)


class Scripted(Callback):
    """Writes losses of its own into the history, so that what listens after it sees a course that is known."""

    def __init__(self, losses: list[float]) -> None:
        self.losses = losses

    def on_epoch_end(self, progress: bpgpu.Progress) -> None:
        progress.history.loss[-1] = self.losses[progress.epoch]


def run(callback: Any, losses: list[float], optimizer: Any = None) -> tuple[MLP, bpgpu.History, list[Any]]:
    net, thetas = network(), []
    history = net.fit(
        *data(), epochs=len(losses), batch_size=20, optimizer=optimizer or SGD(0.1),
        callbacks=[Scripted(losses), callback, lambda p: thetas.append(net.theta.copy()) if p.epoch_ended else None],
    )  # fmt: skip
    return net, history, thetas


def test_the_order_of_events() -> None:
    events: list[tuple[str, int, int]] = []

    class Listener(Callback):
        def on_fit_begin(self, progress: bpgpu.Progress) -> None:
            events.append(("begin", progress.epoch, progress.examples))

        def on_batch_end(self, progress: bpgpu.Progress) -> None:
            assert not progress.epoch_ended and math.isfinite(progress.loss)
            events.append(("batch", progress.epoch, progress.examples))

        def on_epoch_end(self, progress: bpgpu.Progress) -> None:
            assert progress.epoch_ended and len(progress.history.loss) == progress.epoch + 1
            events.append(("epoch", progress.epoch, progress.examples))

        def on_fit_end(self, progress: bpgpu.Progress) -> None:
            events.append(("end", progress.epoch, progress.examples))

    net, optimizer = network(), SGD(0.1)
    net.fit(*data(), epochs=2, batch_size=15, optimizer=optimizer, callbacks=Listener())
    kinds = [kind for kind, _, _ in events if kind != "batch"]
    assert kinds == ["begin", "epoch", "epoch", "end"]
    assert events[0] == ("begin", 0, 0) and events[1] == ("batch", 0, 15) and ("epoch", 0, 60) in events


def test_the_end_is_told_after_an_error() -> None:
    ended = []

    class Fails(Callback):
        def on_epoch_end(self, progress: bpgpu.Progress) -> None:
            raise KeyError("mine")

        def on_fit_end(self, progress: bpgpu.Progress) -> None:
            ended.append(True)

    with pytest.raises(KeyError, match="mine"):
        network().fit(*data(), epochs=2, callbacks=[Fails()])
    assert ended == [True]


@pytest.mark.parametrize(
    ("losses", "patience", "min_delta", "epochs", "best"),
    [
        ([5, 4, 3, 2, 1], 0, 0, 5, 4),
        ([5, 4, 4, 3, 2], 0, 0, 3, 1),
        ([5, 4, 4.5, 4.2, 3, 2], 2, 0, 6, 5),
        ([5, 4, 4.5, 4.2, 4.1, 3], 2, 0, 5, 1),
        ([5, 4.9, 4.8, 4.7, 4.6, 1], 2, 0.5, 4, 3),  # better by too little, and yet the best
        ([5, float("nan"), float("nan"), 1], 1, 0, 3, 0),
    ],
)
def test_early_stopping(losses: list[float], patience: int, min_delta: float, epochs: int, best: int) -> None:
    stopping = EarlyStopping("loss", patience=patience, min_delta=min_delta)
    net, history, thetas = run(stopping, losses)
    assert len(history.loss) == epochs and history.best_epoch == best == stopping.best_epoch
    assert np.array_equal(net.theta, thetas[best])


def test_early_stopping_of_any_metric() -> None:
    values = iter([1.0, 3.0, 2.0, 2.5, 9.0])
    net, history, thetas = run(EarlyStopping(lambda net: next(values), patience=1), [9.0] * 5)
    assert len(history.loss) == 4 and np.array_equal(net.theta, thetas[1])
    values = iter([3.0, 1.0, 2.0, 1.5])
    stopping = EarlyStopping(lambda net: next(values), patience=1, maximize=False, restore_best=False)
    net, history, thetas = run(stopping, [9.0] * 4)
    assert len(history.loss) == 4 and np.array_equal(net.theta, thetas[3]) and stopping.best_epoch == 1


def test_early_stopping_prefers_validation_accuracy_and_starts_anew() -> None:
    stopping, (X, y) = EarlyStopping(patience=0), data()
    first = network().fit(X, y, epochs=30, validation_data=(X, y), callbacks=stopping)
    again = network().fit(X, y, epochs=30, validation_data=(X, y), callbacks=stopping)
    accuracies = first.validation_accuracy
    assert accuracies == again.validation_accuracy and accuracies[-1] <= max(accuracies[:-1])


@pytest.mark.parametrize(
    ("monitor", "loss", "validation", "message"),
    [
        ("validation_loss", "cross_entropy", False, "pass validation_data to fit, or another metric"),
        ("validation_accuracy", "squared_error", False, "pass validation_data to fit, or another metric"),
        ("validation_accuracy", "squared_error", True, "pass another metric: loss or validation_loss"),
    ],
)
def test_a_metric_that_there_will_not_be_is_refused_before_any_work(
    monitor: str, loss: str, validation: bool, message: str, tmp_path: Path
) -> None:
    """Also where a run goes on, and nobody has heard of a beginning."""
    (X, y), path, heard = data(), tmp_path / "c", []
    options: dict[str, Any] = {"validation_data": (X, y)} if validation else {}

    class Listener(Callback):
        def on_fit_begin(self, progress: bpgpu.Progress) -> None:
            heard.append(progress)

    MLP([6, 3], loss=loss).fit(X, y, epochs=1, callbacks=bpgpu.Checkpoint(path), **options)
    for more in ({}, {"resume": path}):
        net = MLP([6, 3], loss=loss, seed=0)
        before = net.theta.copy()
        with pytest.raises(ValueError, match=rf"^there is no {monitor} to monitor; {message}$"):
            net.fit(X, y, epochs=3, callbacks=[Listener(), EarlyStopping(monitor)], **options, **more)
        assert np.array_equal(net.theta, before) and net.epochs_trained == 0 and not heard


def test_a_metric_that_a_callback_fills_can_be_monitored() -> None:
    class Fills(Callback):
        fills = ("validation_loss",)

        def on_epoch_end(self, progress: bpgpu.Progress) -> None:
            progress.history.validation_loss.append([3.0, 1.0, 2.0][progress.epoch])

    stopping = EarlyStopping("validation_loss", patience=0)
    history = network().fit(*data(), epochs=3, callbacks=[Fills(), stopping])
    assert history.validation_loss == [3.0, 1.0, 2.0] and stopping.best_epoch == 1


def test_adaptive_rate() -> None:
    """As scikit-learn's: a fifth after more than two epochs that are better by less than min_delta; the end at 1e-6."""
    rates: list[float] = []
    optimizer, losses = SGD(1e-4), [5.0, 4.0, 3.99995, 3.99993, 3.99992, 3.9, 3.9, 3.9, 3.9] + [3.9] * 20

    class Rates(Callback):
        def on_epoch_end(self, progress: bpgpu.Progress) -> None:
            rates.append(progress.optimizer.rate(0))

    net = network()
    net.fit(*data(), epochs=29, batch_size=20, optimizer=optimizer, callbacks=[Scripted(losses), AdaptiveRate(), Rates()])
    assert rates[:9] == [1e-4] * 4 + [pytest.approx(2e-5)] * 4 + [pytest.approx(4e-6)]
    assert rates[-1] == pytest.approx(8e-7) and len(rates) == 15, "ends three epochs after it fell below 1e-6"
    with pytest.raises(ValueError, match="this one is a schedule"):
        network().fit(*data(), optimizer=SGD(schedules.cosine(0.1, 100)), callbacks=AdaptiveRate())


def test_only_true_ends_a_training() -> None:
    for answer, epochs in ((True, 1), (np.True_, 1), (False, 3), (np.False_, 3), (None, 3), (1, 3), ("yes", 3)):
        history = network().fit(*data(), epochs=3, callbacks=lambda progress, answer=answer: answer)
        assert len(history.loss) == epochs, answer


def test_a_log_that_cannot_be_written_is_said_at_the_beginning(tmp_path: Path) -> None:
    net = network()
    with pytest.raises(FileNotFoundError, match=r"the log .*l\.csv: there is no directory .*nodir; create it first"):
        net.fit(*data(), callbacks=Log(tmp_path / "nodir" / "l.csv"))
    assert net.epochs_trained == 0


@pytest.mark.parametrize("name", ["log.csv", "log.jsonl"])
def test_log(name: str, tmp_path: Path) -> None:
    history = network().fit(*data(), epochs=3, validation_data=data(), callbacks=Log(tmp_path / name))
    text = (tmp_path / name).read_text()
    if name.endswith(".csv"):
        rows: list[dict[str, Any]] = [{k: float(v) for k, v in row.items()} for row in csv.DictReader(io.StringIO(text))]
    else:
        rows = [json.loads(line) for line in text.splitlines()]
    assert [row["epoch"] for row in rows] == [1, 2, 3]
    for column in ("loss", "validation_loss", "validation_accuracy", "seconds"):
        assert [row[column] for row in rows] == getattr(history, column)


def test_tensorboard(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    network().fit(*data(), epochs=2, validation_data=data(), callbacks=bpgpu.TensorBoard(tmp_path / "events"))
    content = b"".join(file.read_bytes() for file in (tmp_path / "events").iterdir())
    for tag in (b"loss", b"validation_accuracy", b"learning_rate"):
        assert content.count(tag) >= 2


def test_tensorboard_has_the_rate_of_the_last_step(monkeypatch: pytest.MonkeyPatch) -> None:
    class Writer:
        seen: list[tuple[str, float, int]] = []  # noqa: RUF012

        def __init__(self, folder: str) -> None:
            pass

        def add_scalar(self, *what: Any) -> None:
            self.seen.append(what)

        def close(self) -> None:
            pass

    monkeypatch.setattr("tensorboardX.SummaryWriter", Writer)
    X, y = data()
    rate = bpgpu.schedules.exponential(0.1, 0.9)
    network().fit(X, y, epochs=2, batch_size=len(X) // 4, optimizer=SGD(rate), callbacks=bpgpu.TensorBoard("nowhere"))
    steps = -(-len(X) // (len(X) // 4))
    assert [what[1] for what in Writer.seen if what[0] == "learning_rate"] == [rate(steps - 1), rate(2 * steps - 1)]


def test_tensorboard_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(__import__("sys").modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r"bpgpu\[tensorboard\]"):
        bpgpu.TensorBoard(tmp_path)


def test_progress_bar_is_quiet_elsewhere(capfd: pytest.CaptureFixture[str]) -> None:
    network().fit(*data(), epochs=2, callbacks=ProgressBar())
    assert capfd.readouterr() == ("", "")
    network().fit(*data(), epochs=2, validation_data=data(), callbacks=ProgressBar(lines=True))
    lines = capfd.readouterr().out.splitlines()
    assert len(lines) == 2 and lines[1].startswith("epoch 2/2  loss ") and "validation accuracy" in lines[1]


def test_progress_bar_on_a_terminal(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # which makes rich take any output for a terminal
    network().fit(*data(), epochs=2, callbacks=ProgressBar(lines=True))
    out = capfd.readouterr().out
    assert "epoch 2/2" in out and "examples/s" in out


class ZMQInteractiveShell:
    """What rich knows a notebook by: the class of what get_ipython() gives."""


def test_progress_bar_in_a_notebook(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar with ipywidgets; without them a line an epoch, and not a word of what is missing."""
    monkeypatch.setattr(builtins, "get_ipython", ZMQInteractiveShell, raising=False)
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    bar = ProgressBar()
    network().fit(*data(), epochs=2, callbacks=bar)
    out, err = capfd.readouterr()
    assert [line.split("  ")[0] for line in out.splitlines()] == ["epoch 1/2", "epoch 2/2"] and err == ""
    shown: list[Any] = []
    widgets, ipython = ModuleType("ipywidgets"), ModuleType("IPython.display")
    widgets.Output, ipython.display = MagicMock, shown.append  # type: ignore[attr-defined]
    widgets.__spec__ = ModuleSpec("ipywidgets", None)
    monkeypatch.setitem(sys.modules, "ipywidgets", widgets)
    monkeypatch.setitem(sys.modules, "IPython.display", ipython)
    network().fit(*data(), epochs=2, callbacks=bar)
    assert capfd.readouterr() == ("", "") and any("epoch 2/2" in str(getattr(drawn, "text", "")) for drawn in shown)


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "number": (lambda: network().fit(*data(), callbacks=[3]), "callbacks has a int"),
    "class": (lambda: network().fit(*data(), callbacks=[EarlyStopping]), "callbacks has EarlyStopping; expected objects"),
    "metric": (lambda: EarlyStopping("los"), "did you mean 'loss'"),
    "patience": (lambda: EarlyStopping(patience=-1), "patience is -1"),
    "factor": (lambda: AdaptiveRate(1.5), "factor is 1.5; expected less than 1"),
    "rate": (lambda: schedules.cosine(-1, 10), "rate is -1"),
    "steps": (lambda: schedules.cosine(0.1, 0), "steps is 0; expected a positive integer"),
    "true": (lambda: schedules.cosine(0.1, True), "steps is True; expected a positive integer"),
    "every": (lambda: schedules.step(0.1, 1.5), "every is 1.5"),  # type: ignore[arg-type]
    "rise": (lambda: schedules.one_cycle(0.1, 10, rise=1.0), "rise=1.0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_options(name: str) -> None:
    with pytest.raises((ValueError, TypeError), match=BAD[name][1]) as error:
        BAD[name][0]()
    assert "\n" not in str(error.value)


# -- schedules ------------------------------------------------------------------------------------------------------------


def values(schedule: Callable[[int], float], *steps: int) -> list[float]:
    return [schedule(t) for t in steps]


def test_schedules() -> None:
    approx = pytest.approx
    assert values(schedules.step(1.0, 10, 0.5), 0, 9, 10, 25) == [1, 1, 0.5, 0.25]
    assert values(schedules.step(np.float32(1), np.int64(10), 0.5), 0, 9, 10, 25) == [1, 1, 0.5, 0.25]
    assert values(schedules.exponential(2.0, 0.9), 0, 1, 3) == approx([2, 1.8, 1.458])
    assert values(schedules.invscaling(1.0), 0, 3, 99) == approx([1, 0.5, 0.1])
    assert values(schedules.cosine(1.0, 100, 0.2), 0, 50, 100, 500) == approx([1, 0.6, 0.2, 0.2])
    assert values(schedules.warm_up(1.0, 4), 0, 1, 3, 4, 9) == approx([0.25, 0.5, 1, 1, 1])
    warm = schedules.warm_up(schedules.cosine(1.0, 100), 10)
    assert values(warm, 0, 9, 10, 60, 110) == approx([0.1, 1, 1, 0.5, 0])
    cycle = values(schedules.one_cycle(1.0, 100), *range(101))
    assert cycle[0] == approx(0.04) and cycle[15] == approx(0.52) and cycle[30] == approx(1) and cycle[100] == approx(4e-6)
    assert cycle[:31] == sorted(cycle[:31]) and cycle[30:] == sorted(cycle[30:], reverse=True)


def test_a_schedule_trains() -> None:
    X, y = data(300)
    history = network().fit(X, y, epochs=10, batch_size=10, optimizer=SGD(schedules.one_cycle(0.2, 300), momentum=0.9))
    assert history.loss[-1] < 0.6 * history.loss[0]
