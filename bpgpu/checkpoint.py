"""What a checkpoint holds of a run of fit, and how another run takes it up: all checks first, then everything is changed."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np

from .backend import Array
from .callbacks import Callback
from .files import load, load_run, save
from .health import Health
from .mlp import MLP
from .optim import Optimizer
from .streams import Rows

if TYPE_CHECKING:
    from .fitting import Run


def identity(net: MLP, optimizer: Optimizer, arrays: Sequence[Any], validation: Sequence[Any] | None, **more: Any) -> Any:
    """What a run must have in common with the one that it goes on with, as JSON says it; of arrays their checksums.

    Functions cannot be compared: it is known only that there was one.
    """
    names = ("layers", "activations", "loss", "output_activation", "reduction", "seed", "dropout")
    facts = {name: getattr(net, name) for name in names} | {
        "dtype": net.dtype.name, "precision": net.backend.precision, "optimizer": type(optimizer).__name__,
        **vars(optimizer), **more,
        "data": [_checksum(net, array) for array in arrays],
        "validation_data": None if validation is None else [_checksum(net, array) for array in validation],
    }  # fmt: skip
    facts = {name: "a function" if callable(value) else value for name, value in facts.items()}
    return json.loads(json.dumps(facts, default=lambda numbers: numbers.tolist()))  # NumPy's


def write(run: Run, path: str | os.PathLike[str]) -> None:
    """Write a checkpoint, which is also a model file.  OSError, in one sentence: it cannot be written."""
    trainer, data, to_numpy = run.trainer, run.data, run.net.backend.to_numpy
    tensors = {f"state.{name}": state for name, state in trainer.states.items()}
    callbacks: list[dict[str, Any]] = []
    for i, callback in enumerate(run.callbacks):
        state = callback.state()
        arrays = {name: value for name, value in state.items() if getattr(value, "ndim", 0)}
        tensors |= {f"callback.{i}.{name}": value for name, value in arrays.items()}
        numbers = {name: value for name, value in state.items() if name not in arrays}
        callbacks.append({"class": type(callback).__name__, "state": numbers})
    ended = len(run.history.loss) > run.epoch  # the next epoch is where it goes on
    header = {
        "identity": run.identity, "epoch": run.epoch + ended, "steps": 0 if ended else data.done,
        "seconds": 0.0 if ended else run.seconds, "steps_taken": trainer.steps_taken, "history": asdict(run.history),
        "optimizer": {name: value for name, value in vars(run.optimizer).items() if not callable(value)},
        "callbacks": callbacks, "stopped": run.stopped,
    }  # fmt: skip
    if not ended:
        tensors |= {name: numbers[: data.done] for name, numbers in data.measured.items()}
        if run.observer.due(run.epoch, run.history):
            tensors["before"] = run.before
    save(run.net, path, {f"run.{name}": np.ascontiguousarray(to_numpy(value)) for name, value in tensors.items()}, header)


def resume(run: Run, path: str | os.PathLike[str]) -> None:
    """Go on with a checkpoint.  OSError: it cannot be read.  ValueError: it is none, or one of another run."""
    (header, tensors), saved = load_run(path), load(path, backend="numpy")
    _check(run.identity, header, path)
    states = _states(run.callbacks, header["callbacks"], tensors, path)
    run.identity = header["identity"]  # with the optimizer's numbers as they were at the beginning
    for callback, state in states:
        callback.restore(state)
    net, trainer, b = run.net, run.trainer, run.net.backend
    for name, value in header["optimizer"].items():
        setattr(run.optimizer, name, value)
    trainer.adopt(run.optimizer)
    b.write(net.theta, saved.theta)
    for name, kept in trainer.states.items():
        if f"state.{name}" in tensors:
            b.write(kept, tensors[f"state.{name}"])
    trainer.steps_taken, net.epochs_trained = header["steps_taken"], saved.epochs_trained
    run.epoch, run.data.done, run.seconds = header["epoch"], header["steps"], header["seconds"]
    run.history = type(run.history)(**header["history"])
    run.history.health = [Health(**seen) for seen in header["history"]["health"]]
    if run.data.done:
        for name, numbers in run.data.measured.items():
            b.write(numbers[: run.data.done], tensors[name])
    run.good, run.stopped = b.copy(net.theta), header["stopped"]
    if "before" in tensors:
        run.before = b.asarray(tensors["before"])


def _check(mine: dict[str, Any], header: dict[str, Any], path: str | os.PathLike[str]) -> None:
    """ValueError unless it is the same run.  The optimizer may be as it was at the beginning or, where a callback has changed
    it, as it was when the checkpoint was written."""
    its, present = header["identity"], header["optimizer"]
    for name, here in mine.items():
        if here != its.get(name) and (name not in present or here != present[name]):
            raise ValueError(
                f"{path} is of another run: its {name} is {its.get(name)!r}, here it is {here!r}; to go on otherwise, train "
                "the network that bpgpu.load reads from it"
            )


def _states(
    callbacks: list[Callback], kept: list[dict[str, Any]], tensors: dict[str, Array], path: str | os.PathLike[str]
) -> list[tuple[Callback, dict[str, Any]]]:
    """Which callback gets which state: those of a class in their order.  A class that had none begins afresh.

    ValueError: there were more or fewer of a class, so that it cannot be told which is which.
    """
    pairs: list[tuple[Callback, dict[str, Any]]] = []
    for name in dict.fromkeys(type(callback).__name__ for callback in callbacks):
        mine, its = [callback for callback in callbacks if type(callback).__name__ == name], []
        for i, entry in enumerate(kept):
            if entry["class"] == name:
                prefix = f"callback.{i}."
                arrays = {key[len(prefix) :]: array for key, array in tensors.items() if key.startswith(prefix)}
                its.append(entry["state"] | arrays)
        if any(its) and len(mine) != len(its):
            raise ValueError(f"{path} is of another run: it had {len(its)} callbacks {name}, here there are {len(mine)}")
        pairs += zip(mine, its, strict=False)
    return pairs


def _checksum(net: MLP, array: Array | Rows | None) -> int | None:
    """Of the bytes of an array, the same wherever it is; None for none."""
    if array is None:
        return None
    value, blocks = 0, array.blocks() if isinstance(array, Rows) else [(0, net.backend.to_numpy(array))]
    for _, block in blocks:
        value = zlib.crc32(np.require(block, array.dtype, ["C"]).reshape(-1).view(np.uint8).data, value)
    return value
