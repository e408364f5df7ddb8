"""Nothing is lost: a run that is killed and resumed ends in the bits of the one that was never interrupted."""

from __future__ import annotations

import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bpgpu
from bpgpu import (
    MLP,
    SGD,
    Adagrad,
    Adam,
    AdamW,
    AdaptiveRate,
    Callback,
    Checkpoint,
    EarlyStopping,
    ProgressBar,
    RMSprop,
    files,
    schedules,
)
from bpgpu import epochs as epochs_module
from bpgpu.cli import main
from bpgpu.epochs import Epochs
from bpgpu.files import load_run

pytestmark = pytest.mark.usefixtures("every_epoch_looked_at")
Fit = Callable[..., bpgpu.History]


def data(n: int = 60) -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, n)
    return (2 * np.eye(3, 6)[y] + rng.standard_normal((n, 6))).astype("f4"), y


def network(**options: Any) -> MLP:
    return MLP([6, 9, 3], **{"activation": "tanh", "seed": 1, **options})


def outcome(net: MLP, history: bpgpu.History) -> Any:
    """All but the seconds."""
    kept = {name: value for name, value in asdict(history).items() if name != "seconds"}
    return hashlib.sha256(np.ascontiguousarray(net.backend.to_numpy(net.theta))).hexdigest(), net.epochs_trained, kept


class Every(Callback):
    """A checkpoint at every occasion, each in a file of its own."""

    saves = True

    def __init__(self, folder: Path) -> None:
        self.folder, self.files = folder, []  # type: Path, list[Path]

    def on_batch_end(self, progress: bpgpu.Progress) -> None:
        self.files.append(self.folder / f"{len(self.files)}.safetensors")
        progress.save(self.files[-1])

    on_epoch_end = on_batch_end


class Ends(Callback):
    """Ends the training in some way in the second of three epochs."""

    def __init__(self, how: Any, event: str) -> None:
        self.how = how
        setattr(self, event, self.hear)

    def hear(self, progress: bpgpu.Progress) -> Any:
        if progress.epoch == 1 and progress.examples > 20:
            if isinstance(self.how, BaseException):
                raise self.how
            return self.how
        return False


class Measured(Callback):
    """It wants what the penalty is, in each epoch, for History.penalty."""

    measures_penalty = True


X, Y = data()
WEIGHT = np.random.default_rng(1).random(60)
CASES: dict[str, Callable[[], dict[str, Any]]] = {
    "sgd": lambda: {"optimizer": SGD(0.1)},
    "momentum, validation": lambda: {"optimizer": SGD(0.5, 0.9), "validation_data": data(30), "restore_best": True},
    "adam, weights": lambda: {"optimizer": Adam(0.01), "sample_weight": WEIGHT},
    "adamw, a schedule": lambda: {"optimizer": AdamW(schedules.one_cycle(0.05, 15)), "shuffle": False},
    "rmsprop, early stopping": lambda: {
        "optimizer": RMSprop(0.05), "validation_data": data(30), "callbacks": [EarlyStopping("validation_loss", patience=0)],
    },
    "clipped": lambda: {"optimizer": SGD(0.1, 0.9), "clip_per_example": 0.5},
    "adagrad": lambda: {"optimizer": Adagrad(0.1)},
    "penalties": lambda: {"optimizer": SGD(0.1, 0.9, weight_decay=0.05, l1=0.01), "callbacks": [Measured()]},
    "adaptive": lambda: {"optimizer": SGD(0.5, 0.9), "callbacks": [AdaptiveRate(patience=0, min_delta=0.1)]},
}  # fmt: skip


def fit(net: MLP, case: str, *more: Callback, **options: Any) -> bpgpu.History:
    arguments = CASES[case]()
    arguments["callbacks"] = [*arguments.get("callbacks", []), *more]
    return net.fit(X, Y, epochs=3, batch_size=13, **arguments, **options)


@pytest.mark.parametrize("case", CASES)
def test_every_checkpoint_leads_to_the_same_end(case: str, tmp_path: Path) -> None:
    net = network()
    expected = outcome(net, fit(net, case))
    watched, every = network(), Every(tmp_path)
    assert outcome(watched, fit(watched, case, every)) == expected, "to look is not to touch"
    assert len(every.files) > 2 * expected[1], "also within epochs"
    for file in every.files:
        net = network()
        net.theta[:] = 7  # what it held before does not matter
        assert outcome(net, fit(net, case, resume=file)) == expected, file


@pytest.mark.parametrize("first", ["cpu", "cuda"])
def test_a_run_may_move_between_backends(first: str, tmp_path: Path) -> None:
    from bpgpu.cuda import CUDABackend
    from tests.emulator import available
    from tests.emulator.gpu import GPU

    if available() is not None:
        pytest.skip(f"no emulator here: {available()}")
    emulated = CUDABackend(GPU())
    backends: list[Any] = ["cpu", emulated] if first == "cpu" else [emulated, "cpu"]
    net, every = network(backend=backends[0]), Every(tmp_path)
    expected = outcome(net, fit(net, "adam, weights", every))
    for file in every.files[:: len(every.files) // 3]:
        net = network(backend=backends[1])
        assert outcome(net, fit(net, "adam, weights", resume=file)) == expected


def test_a_finished_run_can_be_made_longer(tmp_path: Path) -> None:
    path, nets = tmp_path / "c", [network(), network(), network()]
    expected = nets[0].fit(X, Y, epochs=5, batch_size=16, optimizer=Adam(0.01))
    nets[1].fit(X, Y, epochs=2, batch_size=16, optimizer=Adam(0.01), callbacks=Checkpoint(path))
    history = nets[2].fit(X, Y, epochs=5, batch_size=16, optimizer=Adam(0.01), resume=path)
    assert outcome(nets[0], expected) == outcome(nets[2], history) and len(history.seconds) == 5


def test_a_checkpoint_is_a_model(tmp_path: Path) -> None:
    net = network()
    net.fit(X, Y, epochs=2, optimizer=Adam(), callbacks=Checkpoint(tmp_path / "c"))
    loaded = bpgpu.load(tmp_path / "c")
    assert np.array_equal(loaded.theta, net.theta) and loaded.epochs_trained == 2
    assert [file.name for file in tmp_path.iterdir()] == ["c"]


@pytest.mark.parametrize("event", ["on_batch_end", "on_epoch_end"])
@pytest.mark.parametrize("how", [True, np.True_, KeyboardInterrupt(), RuntimeError("mine")], ids=repr)
def test_whatever_ends_a_run_it_is_written(how: Any, event: str, tmp_path: Path) -> None:
    path, net, whole = tmp_path / "c", network(), network()
    options = {"epochs": 3, "batch_size": 13, "optimizer": Adam(0.01), "restore_best": True}
    callbacks = [Ends(how, event), Checkpoint(path, seconds=None)]
    if isinstance(how, BaseException):
        expected = outcome(whole, whole.fit(X, Y, **options))
        with pytest.raises(type(how)):
            net.fit(X, Y, **options, callbacks=callbacks)
    else:  # that is its end, also of a run that is resumed
        expected = outcome(net, net.fit(X, Y, **options, callbacks=callbacks))
        assert len(expected[2]["loss"]) == 1 + (event == "on_epoch_end")
    resumed = network()
    assert outcome(resumed, resumed.fit(X, Y, **options, resume=path)) == expected


def test_early_stopping_is_an_end_that_is_written(tmp_path: Path) -> None:
    """And the last weights are in the file, though the network has the best ones by then."""
    path, net, resumed = tmp_path / "c", network(), network()
    options = {"epochs": 100, "optimizer": SGD(0.1)}
    stopping = {"patience": 0, "min_delta": 0.5}
    history = net.fit(X, Y, **options, callbacks=[EarlyStopping("loss", **stopping), Checkpoint(path)])
    assert 1 < len(history.loss) < 100
    again = resumed.fit(X, Y, **options, callbacks=EarlyStopping("loss", **stopping), resume=path)
    assert outcome(resumed, again) == outcome(net, history)
    path.unlink()
    worse = iter([2.0, 1.0])
    net = network()
    net.fit(X, Y, **options, callbacks=[EarlyStopping(lambda net: next(worse), patience=0), Checkpoint(path)])
    assert not np.array_equal(bpgpu.load(path).theta, net.theta)


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
@pytest.mark.parametrize("step", [1, 4, 7])
def test_ctrl_c_within_a_step_is_heard_after_it(
    backend: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    net, whole, original = network(backend=backend), network(backend=backend), Epochs.first_bad_step
    expected, taken = outcome(whole, fit(whole, "momentum, validation")), iter(range(100))

    def struck(self: Epochs, steps: int) -> int | None:
        if next(taken) == step:
            signal.raise_signal(signal.SIGINT)  # its handler is called at once
            assert not self.between_steps
        return original(self, steps)

    with monkeypatch.context() as patch:
        patch.setattr(epochs_module, "SLICE_SECONDS", 0)  # one step at a time
        patch.setattr(Epochs, "first_bad_step", struck)
        with pytest.raises(KeyboardInterrupt):
            fit(net, "momentum, validation", Checkpoint(tmp_path / "c", seconds=None))
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert place(tmp_path / "c") == (step // 5, step % 5 + 1)
    resumed = network(backend=backend)
    assert outcome(resumed, fit(resumed, "momentum, validation", resume=tmp_path / "c")) == expected


def test_ctrl_c_during_validation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net, whole, original, calls = network(), network(), MLP.evaluate, iter(range(9))

    def evaluate(*arguments: Any, **options: Any) -> Any:
        if next(calls) == 1:
            raise KeyboardInterrupt
        return original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(MLP, "evaluate", evaluate)
        with pytest.raises(KeyboardInterrupt):
            fit(net, "momentum, validation", Checkpoint(tmp_path / "c", seconds=None))
    assert place(tmp_path / "c") == (1, 5) and net.epochs_trained == 1
    resumed = network()
    expected = outcome(whole, fit(whole, "momentum, validation"))
    assert outcome(resumed, fit(resumed, "momentum, validation", resume=tmp_path / "c")) == expected


def test_an_epoch_that_not_all_have_heard_of_is_not_written(tmp_path: Path) -> None:
    """EarlyStopping comes after the callback that fails: with a checkpoint of that moment it would miss an epoch."""
    path, whole, net, resumed = tmp_path / "c", network(), network(), network()
    stopping = EarlyStopping("loss", patience=1, min_delta=0.05)
    expected = outcome(whole, whole.fit(X, Y, epochs=30, callbacks=stopping))
    with pytest.raises(KeyboardInterrupt):
        net.fit(X, Y, epochs=30, callbacks=[Ends(KeyboardInterrupt(), "on_epoch_end"), stopping, Checkpoint(path, epochs=1)])
    assert place(path) == (1, 0)
    assert outcome(resumed, resumed.fit(X, Y, epochs=30, callbacks=stopping, resume=path)) == expected


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*names: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(files.os, "replace", full)


def test_an_error_in_flight_is_the_one_that_is_raised(
    full_disk: None, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (path := tmp_path / "c").write_bytes(b"old")
    with pytest.raises(RuntimeError, match="mine"):
        network().fit(X, Y, epochs=3, callbacks=[Ends(RuntimeError("mine"), "on_epoch_end"), Checkpoint(path)])
    said = capfd.readouterr().err
    assert f"bpgpu: the checkpoint {path} cannot be written (No space left on device)" in said and said.count("\n") == 1
    assert path.read_bytes() == b"old" and [file.name for file in tmp_path.iterdir()] == ["c"]


def test_a_checkpoint_that_fails_at_the_end_keeps_nobody_else_from_it(full_disk: None, tmp_path: Path) -> None:
    net, scores, thetas = network(), iter([1.0, 3.0, 2.0]), []
    callbacks = [EarlyStopping(lambda net: next(scores)), lambda p: thetas.append(net.theta.copy()) if p.epoch_ended else None]
    with pytest.raises(OSError, match=r"No space left on device.*the network keeps what was learned so far"):
        net.fit(X, Y, epochs=3, callbacks=[*callbacks, Checkpoint(tmp_path / "c")])
    assert np.array_equal(net.theta, thetas[1]), "the best weights"


@pytest.mark.parametrize(("epochs", "written"), [(None, [4]), (1, [1, 2, 3, 4]), (3, [3, 4])])
def test_how_often(epochs: int | None, written: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = Checkpoint.write

    def write(self: Checkpoint, progress: bpgpu.Progress) -> None:
        seen.append(len(progress.history.loss))
        original(self, progress)

    monkeypatch.setattr(Checkpoint, "write", write)
    network().fit(X, Y, epochs=4, callbacks=Checkpoint(tmp_path / "c", epochs=epochs))
    assert seen == written
    seen.clear()
    network().fit(X, Y, epochs=2, batch_size=1, callbacks=Checkpoint(tmp_path / "c", seconds=0))
    assert len(seen) > 2, "within an epoch, too"


def test_other_runs_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "c"
    network().fit(X, Y, epochs=1, batch_size=16, optimizer=SGD(0.1), callbacks=Checkpoint(path))
    others: list[tuple[str, MLP, dict[str, Any]]] = [
        ("its layers is", MLP([6, 8, 3], activation="tanh", seed=1), {}),
        ("its seed is 1, here it is 2", network(seed=2), {}),
        ("its dtype is 'float32', here it is 'float64'", network(dtype="float64"), {}),
        ("its batch_size is 16, here it is 8", network(), {"batch_size": 8}),
        ("its optimizer is 'SGD', here it is 'Adam'", network(), {"optimizer": Adam()}),
        ("its shuffle is True", network(), {"shuffle": False}),
        ("its shuffle is True, here it is 'a function'", network(), {"shuffle": lambda epoch: np.arange(60)}),
        ("its data is", network(), {"sample_weight": WEIGHT}),
        ("its learning_rate is 0.1, here it is 0.2", network(), {"optimizer": SGD(0.2)}),
        ("its learning_rate is 0.1, here it is 'a function'", network(), {"optimizer": SGD(schedules.cosine(0.1, 9))}),
        ("its momentum is 0.0, here it is 0.9", network(), {"optimizer": SGD(0.1, 0.9)}),
        ("its weight_decay is 0.0, here it is 0.01", network(), {"optimizer": SGD(0.1, weight_decay=0.01)}),
        ("its layer_rates is None", network(), {"optimizer": SGD(0.1, layer_rates=[1, 2])}),
        ("its clip_norm is None, here it is 1.0", network(), {"optimizer": SGD(0.1, clip_norm=1.0)}),
        ("its clip_per_example is None, here it is 0.5", network(), {"clip_per_example": 0.5}),
        ("its validation_data is None", network(), {"validation_data": data(30)}),
        ("its restore_best is False, here it is True", network(), {"restore_best": True}),
        ("its measures_penalty is False, here it is True", network(), {"callbacks": Measured()}),
        ("its transform is None, here it is 'a function'", network(), {"transform": lambda X, generator: X}),
    ]
    for words, net, options in others:
        before, arguments = net.theta.copy(), {"optimizer": SGD(0.1), **options}
        numbers = vars(arguments["optimizer"]).copy()
        with pytest.raises(ValueError, match=words) as error:
            net.fit(X, Y, **{"epochs": 3, "batch_size": 16, "resume": path, **arguments})
        assert "\n" not in str(error.value) and np.array_equal(net.theta, before) and net.epochs_trained == 0
        assert vars(arguments["optimizer"]) == numbers
    with pytest.raises(ValueError, match="its data is"):
        network().fit(X + 1, Y, epochs=3, batch_size=16, optimizer=SGD(0.1), resume=path)


@pytest.mark.parametrize("other", [None, data(40)], ids=["none", "others"])
def test_validation_data_belong_to_the_run(other: Any, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        fit(network(), "momentum, validation", Ends(KeyboardInterrupt(), "on_batch_end"), Checkpoint(tmp_path / "c"))
    arguments = CASES["momentum, validation"]() | {"validation_data": other}
    with pytest.raises(ValueError, match="its validation_data is"):
        network().fit(X, Y, epochs=3, batch_size=13, **arguments, resume=tmp_path / "c")


def test_an_optimizer_that_a_callback_has_changed_may_go_on(tmp_path: Path) -> None:
    """The one of the interrupted run itself, or a new one as that was at the beginning; the same for the next checkpoint."""
    path, optimizer, whole = tmp_path / "c", SGD(0.5, 0.9), network()

    def run(net: MLP, *more: Callback, **options: Any) -> bpgpu.History:
        callbacks = [AdaptiveRate(patience=0, min_delta=10), *more, Checkpoint(path)]  # it lowers the rate after each epoch
        return net.fit(X, Y, **{"epochs": 4, "batch_size": 13, "optimizer": SGD(0.5, 0.9), "callbacks": callbacks, **options})

    expected = outcome(whole, run(whole))
    for event, options in (("on_batch_end", {"optimizer": optimizer}), ("on_epoch_end", {"resume": path})):
        with pytest.raises(KeyboardInterrupt):
            run(network(), Ends(KeyboardInterrupt(), event), **options)
    optimizer.learning_rate = load_run(path)[0]["optimizer"]["learning_rate"]
    interrupted = path.read_bytes()
    assert optimizer.learning_rate < 0.5, "this shows nothing"
    for its in (SGD(0.5, 0.9), optimizer):
        path.write_bytes(interrupted)
        net = network()
        assert outcome(net, run(net, optimizer=its, resume=path)) == expected
    with pytest.raises(ValueError, match=r"its learning_rate is 0\.5, here it is 0\.3"):
        run(network(), optimizer=SGD(0.3, 0.9), resume=path)


class Counts(Callback):
    """Has a state of numbers of all kinds."""

    def __init__(self) -> None:
        self.kept: dict[str, Any] = {
            "epochs": np.int64(0),
            "sum": np.float64(0.1),
            "some": np.zeros(2),
            "on": np.True_,
            "none": None,
        }

    def on_epoch_end(self, progress: bpgpu.Progress) -> None:
        self.kept["epochs"] += 1

    def state(self) -> dict[str, Any]:
        return self.kept

    def restore(self, state: dict[str, Any]) -> None:
        self.kept = state


def test_callbacks_are_known_by_their_class(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Others may come before them, go, or be new."""
    path, options = tmp_path / "c", {"batch_size": 16, "optimizer": SGD(0.1)}

    def stopping() -> list[EarlyStopping]:
        return [EarlyStopping("loss", patience=1, min_delta=0.05), EarlyStopping("loss", patience=40)]

    whole, net = network(), network()
    expected = outcome(whole, whole.fit(X, Y, epochs=40, callbacks=stopping(), **options))
    assert 3 < len(expected[2]["loss"]) < 40
    net.fit(X, Y, epochs=3, callbacks=[*stopping(), Counts(), Checkpoint(path)], **options)
    net, counts = network(), Counts()
    callbacks = [ProgressBar(), lambda progress: None, *stopping(), Checkpoint(tmp_path / "d"), counts]
    assert outcome(net, net.fit(X, Y, epochs=40, callbacks=callbacks, resume=path, **options)) == expected
    assert counts.kept["epochs"] == len(expected[2]["loss"])
    with pytest.raises(ValueError, match="it had 2 callbacks EarlyStopping, here there are 1"):
        network().fit(X, Y, epochs=40, callbacks=stopping()[0], resume=path, **options)
    network().fit(X, Y, epochs=3, callbacks=Checkpoint(path), **options)
    whole, net = network(), network()
    expected = outcome(whole, whole.fit(X, Y, epochs=5, **options))
    assert outcome(net, net.fit(X, Y, epochs=5, callbacks=EarlyStopping("loss"), resume=path, **options)) == expected


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    counts = Counts()
    network().fit(X, Y, epochs=2, callbacks=[Counts(), Checkpoint(tmp_path / "c")])
    network().fit(X, Y, epochs=2, callbacks=counts, resume=tmp_path / "c")
    some = counts.kept.pop("some")
    assert counts.kept == {"epochs": 2, "sum": 0.1, "on": True, "none": None} and some.shape == (2,)
    assert all(np.ndim(value) == 0 for value in counts.kept.values())


@pytest.mark.parametrize("batch_size", [13, 60])
def test_weights_that_are_not_finite_replace_nothing(batch_size: int, tmp_path: Path) -> None:
    """The loss of the first step is finite, the weights after it are not; and from what Diverged leaves there is no way on."""
    path, net = tmp_path / "c", network(activation="relu")
    options = {"batch_size": batch_size, "callbacks": Checkpoint(path, seconds=0)}
    net.fit(X, Y, epochs=1, **options)
    good = path.read_bytes()
    with pytest.raises(bpgpu.Diverged):
        network(activation="relu").fit(1e5 * X, Y, optimizer=SGD(3e38), **options)
    assert path.read_bytes() == good


def test_nor_does_a_loss_that_is_not_finite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C comes in the step that has it, before anybody looks; the weights are finite."""
    net, original = MLP([6, 3], loss="squared_error"), Epochs.first_bad_step
    net.theta = net.theta * 1e20

    def struck(self: Epochs, steps: int) -> int | None:
        if not self.between_steps:
            signal.raise_signal(signal.SIGINT)
        return original(self, steps)

    monkeypatch.setattr(Epochs, "first_bad_step", struck)
    with pytest.raises(KeyboardInterrupt):
        net.fit(X, Y, optimizer=SGD(1e-9), callbacks=Checkpoint(tmp_path / "c"))
    assert np.isfinite(net.theta).all() and not list(tmp_path.iterdir())


def test_only_its_own_leftovers_are_removed(tmp_path: Path) -> None:
    others = {".env.local", ".env.x", ".env.best.safetensors.abcdefgh.bpgpu-unfinished", "env.abcdefgh.bpgpu-unfinished"}
    for name in (*others, ".env.a0_defgh.bpgpu-unfinished"):
        (tmp_path / name).write_bytes(b"")
    network().fit(X, Y, epochs=1, callbacks=Checkpoint(tmp_path / "env"))
    assert {file.name for file in tmp_path.iterdir()} == {*others, "env"}


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_stays_a_link(tmp_path: Path) -> None:
    (tmp_path / "far").mkdir()
    link, file = tmp_path / "link", tmp_path / "far" / "c"
    link.symlink_to(file)
    for _ in range(2):  # it points to nothing, then to a file
        network().fit(X, Y, epochs=1, callbacks=Checkpoint(link))
        assert link.is_symlink() and bpgpu.load(file).epochs_trained == 1
    assert sorted(entry.name for entry in tmp_path.rglob("*")) == ["c", "far", "link"]


def test_files_that_are_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "c"
    with pytest.raises(FileNotFoundError):
        network().fit(X, Y, resume=path)
    network().save(path)
    with pytest.raises(ValueError, match="is no checkpoint"):
        network().fit(X, Y, resume=path)
    network().fit(X, Y, epochs=1, callbacks=Checkpoint(path))
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="not a whole one"):
        network().fit(X, Y, resume=path)
    with pytest.raises(FileNotFoundError, match="create it first"):
        network().fit(X, Y, callbacks=Checkpoint(tmp_path / "no" / "such" / "c"))
    with pytest.raises(IsADirectoryError, match="is a directory; expected the name of a file"):
        network().fit(X, Y, callbacks=Checkpoint(tmp_path))
    for options in ({"seconds": -1.0}, {"epochs": 0}, {"epochs": True}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Checkpoint(path, **options)  # type: ignore[arg-type]


# -- SIGKILL --------------------------------------------------------------------------------------------------------------

EPOCHS = {"cpu": 60, "cuda": 30}
TRAIN = """
import sys, os, json, hashlib, numpy as np, bpgpu
path, backend, epochs = sys.argv[1:]
if backend == "cuda":
    from bpgpu.cuda import CUDABackend
    from tests.emulator.gpu import GPU
    backend = CUDABackend(GPU())
rng = np.random.default_rng(0)
X, y = rng.standard_normal((700, 20)), rng.integers(0, 4, 700)
net = bpgpu.MLP([20, 60, 40, 4], seed=2, backend=backend)
callbacks = [bpgpu.EarlyStopping(patience=500), *([bpgpu.Checkpoint(path, seconds=0.0)] if path else [])]
print("ready", flush=True)
history = net.fit(X, y, epochs=int(epochs), batch_size=32, optimizer=bpgpu.Adam(1e-3), validation_data=(X[:90], y[:90]),
                  callbacks=callbacks, resume=path if os.path.exists(path) else None)
theta = net.backend.to_numpy(net.theta)
print(json.dumps([hashlib.sha256(theta.tobytes()).hexdigest(), history.loss, history.validation_loss, history.best_epoch]))
"""
ROOT = Path(__file__).parent.parent


def train(path: Path | str, backend: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(path), backend, str(EPOCHS[backend])], cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def outcome_of(process: subprocess.Popen[str]) -> Any:
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    return json.loads(out.splitlines()[-1])


def place(path: Path) -> tuple[int, int]:
    """Epoch and step of a checkpoint, which is whole."""
    if not path.exists():
        return 0, 0
    bpgpu.load(path)
    header, _ = load_run(path)
    return header["epoch"], header["steps"]


def killed_and_resumed(folder: Path, backend: str, kills: int, seed: int) -> None:
    """Kills count if the process has come further than the one before it, and has not come to the end."""
    expected = outcome_of(train("", backend))
    generator, path, counted, end = random.Random(seed), folder / "killed", 0, (EPOCHS[backend], 0)
    for _ in range(20 * kills):
        before, process = place(path), train(path, backend)
        assert process.stdout is not None and process.stdout.readline() == "ready\n"
        time.sleep(generator.uniform(0, 0.5))
        process.kill()
        _, error = process.communicate(timeout=300)
        assert process.returncode in (-signal.SIGKILL, 0), error
        if (after := place(path)) == end:
            path.unlink()  # it was faster than the killer
        counted += before < after < end
        if counted == kills:
            break
    assert counted == kills and outcome_of(train(path, backend)) == expected
    assert [file.name for file in folder.iterdir()] == ["killed"]


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGKILL")
@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_killed_at_random_moments(backend: str, tmp_path: Path) -> None:
    from tests.emulator import available

    if backend == "cuda" and available() is not None:
        pytest.skip(f"no emulator here: {available()}")
    killed_and_resumed(tmp_path, backend, 5, seed=1)


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGKILL")
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_killed_many_times(backend: str, seed: int, tmp_path: Path) -> None:
    killed_and_resumed(tmp_path, backend, 15, seed)


# -- a full disk, and the command line ------------------------------------------------------------------------------------

FULL = """
import resource, signal, sys, numpy as np, bpgpu
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
rng = np.random.default_rng(0)
X, y = rng.standard_normal((60, 6)), rng.integers(0, 3, 60)
net, path = bpgpu.MLP([6, 200, 3]), sys.argv[1]
net.fit(X, y, epochs=1, callbacks=bpgpu.Checkpoint(path))
good = open(path, "rb").read()
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
try:
    net.fit(X, y, epochs=1, callbacks=bpgpu.Checkpoint(path))
except OSError as error:
    print(error)
assert open(path, "rb").read() == good and net.epochs_trained == 2 and np.isfinite(net.evaluate(X, y)[0])
"""


def test_a_full_disk_keeps_the_good_checkpoint_and_the_run(tmp_path: Path) -> None:
    pytest.importorskip("resource")
    command = [sys.executable, "-c", FULL, str(tmp_path / "c")]
    done = subprocess.run(
        command, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith(f"the checkpoint {tmp_path / 'c'} cannot be written (") and done.stdout.count("\n") == 1
    assert [file.name for file in tmp_path.iterdir()] == ["c"]


def test_the_command_line_resumes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez(tmp_path / "d.npz", X=data(300)[0], y=data(300)[1])
    options = ["train", "--data", str(tmp_path / "d.npz"), "--hidden", "9", "--batch-size", "16"]
    whole, resumed, checkpoint = (str(tmp_path / name) for name in ("whole", "resumed", "checkpoint"))
    assert main([*options, "--epochs", "4", "--output", whole]) == 0
    assert main([*options, "--epochs", "2", "--output", resumed, "--checkpoint", checkpoint, "--resume"]) == 0
    assert "training from the beginning" in capsys.readouterr().out
    assert main([*options, "--epochs", "4", "--output", resumed, "--checkpoint", checkpoint, "--resume"]) == 0
    out = capsys.readouterr().out
    assert f"resuming from {checkpoint}" in out and "epoch 3/4" in out and "epoch 2/4" not in out
    assert Path(whole).read_bytes() == Path(resumed).read_bytes()
    assert main([*options, "--resume"]) == 2
    assert "--resume needs --checkpoint" in capsys.readouterr().err
    assert main([*options, "--checkpoint", str(tmp_path / "no" / "c")]) == 2
    assert "create it first" in capsys.readouterr().err
