"""Nothing is lost: a run that is killed and resumed ends in the bits of the one that was never interrupted."""

from __future__ import annotations

import hashlib
import json
import os
import random
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
from bpgpu import MLP, SGD, Adagrad, Adam, AdamW, AdaptiveRate, Callback, Checkpoint, EarlyStopping, RMSprop, schedules
from bpgpu.cli import main

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


@pytest.mark.parametrize(("epochs", "written"), [(None, [4]), (1, [1, 2, 3, 4]), (3, [3, 4])])
def test_how_often(epochs: int | None, written: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    original = Checkpoint.write

    def write(self: Checkpoint, progress: bpgpu.Progress) -> None:
        seen.append(progress.epoch + 1)
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
        ("its data is", network(), {"sample_weight": WEIGHT}),
    ]
    for words, net, options in others:
        before = net.theta.copy()
        with pytest.raises(ValueError, match=words) as error:
            net.fit(X, Y, **{"epochs": 3, "batch_size": 16, "optimizer": SGD(0.1), "resume": path, **options})
        assert "\n" not in str(error.value) and np.array_equal(net.theta, before) and net.epochs_trained == 0
    with pytest.raises(ValueError, match="its data is"):
        network().fit(X + 1, Y, epochs=3, batch_size=16, optimizer=SGD(0.1), resume=path)


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
    for options in ({"seconds": -1.0}, {"epochs": 0}):
        with pytest.raises(ValueError, match=next(iter(options))):
            Checkpoint(path, **options)  # type: ignore[arg-type]


# -- SIGKILL --------------------------------------------------------------------------------------------------------------

TRAIN = """
import sys, os, json, hashlib, numpy as np, bpgpu
path, backend = sys.argv[1:]
if backend == "cuda":
    from bpgpu.cuda import CUDABackend
    from tests.emulator.gpu import GPU
    backend = CUDABackend(GPU())
rng = np.random.default_rng(0)
X, y = rng.standard_normal((700, 20)), rng.integers(0, 4, 700)
net = bpgpu.MLP([20, 60, 40, 4], seed=2, backend=backend)
callbacks = [bpgpu.Checkpoint(path, seconds=0.0), bpgpu.EarlyStopping(patience=50)]
print("ready", flush=True)
history = net.fit(X, y, epochs=6, batch_size=32, optimizer=bpgpu.Adam(1e-3), validation_data=(X[:90], y[:90]),
                  callbacks=callbacks, resume=path if os.path.exists(path) else None)
theta = net.backend.to_numpy(net.theta)
print(json.dumps([hashlib.sha256(theta.tobytes()).hexdigest(), history.loss, history.validation_loss, history.best_epoch]))
"""
ROOT = Path(__file__).parent.parent


def train(path: Path, backend: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", TRAIN, str(path), backend], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def killed_and_resumed(folder: Path, backend: str, kills: int, seed: int) -> None:
    process = train(folder / "whole", backend)
    out, error = process.communicate(timeout=300)
    assert process.returncode == 0, error
    expected = json.loads(out.splitlines()[-1])
    generator, path, died = random.Random(seed), folder / "killed", 0
    while True:
        process = train(path, backend)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if died < kills:
            time.sleep(generator.uniform(0, 0.25))
            process.kill()
        out, error = process.communicate(timeout=300)
        if process.returncode == 0:
            assert json.loads(out.splitlines()[-1]) == expected
            if died >= kills:
                break
            path.unlink()  # it was faster than the killer
        else:
            assert process.returncode == -9, error
        died += 1
        if path.exists():
            bpgpu.load(path)  # whole, whatever moment it was
    assert sorted(file.name for file in folder.iterdir()) == ["killed", "whole"]


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGKILL")
@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_killed_at_random_moments(backend: str, tmp_path: Path) -> None:
    from tests.emulator import available

    if backend == "cuda" and available() is not None:
        pytest.skip(f"no emulator here: {available()}")
    killed_and_resumed(tmp_path, backend, 3 if backend == "cpu" else 2, seed=1)


@pytest.mark.exhaustive
@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGKILL")
@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("backend", ["cpu", "cuda"])
def test_killed_many_times(backend: str, seed: int, tmp_path: Path) -> None:
    killed_and_resumed(tmp_path, backend, 10, seed)


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
