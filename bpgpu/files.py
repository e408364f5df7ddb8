"""Model files: safetensors, the architecture in the header; never pickle."""

from __future__ import annotations

import glob
import json
import os
import tempfile
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .backend import Backend
from .devices import get_backend

if TYPE_CHECKING:
    from .mlp import MLP

_FIELDS = ("layers", "activations", "loss", "output_activation", "reduction", "seed", "epochs_trained", "classes", "dropout")
_ENDING = ".bpgpu-unfinished"  # of the name of a file that is being written


def save(
    net: MLP, path: str | os.PathLike[str], run: dict[str, np.ndarray[Any, Any]] | None = None, header: Any = None
) -> None:
    """Write a model file; with `run`, tensors called run.*, and `header` it is a checkpoint as well."""
    from safetensors.numpy import save as to_bytes

    theta = net.backend.to_numpy(net.theta)
    weights, biases = net.views(theta)
    tensors = {f"weights.{l}": W for l, W in enumerate(weights)} | {f"biases.{l}": b for l, b in enumerate(biases)}
    architecture = {name: getattr(net, name) for name in _FIELDS}
    metadata = {"bpgpu": json.dumps(architecture)}
    if run is not None:
        tensors |= run
        metadata["bpgpu_run"] = json.dumps(header, default=lambda number: number.item())  # NumPy's
    write_whole(path, to_bytes(tensors, metadata))


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file under a temporary name beside it, then rename: at any moment the old file is there or the new one.

    Of a link, what it points to is replaced.  OSError, in one sentence: it cannot be written; the old file is as it was.
    """
    check_writable(path)
    place = _place(path)
    try:
        handle, temporary = tempfile.mkstemp(_ENDING, f".{place.name}.", place.parent)
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            if os.name == "posix":  # mkstemp keeps a file to its owner; a model is readable like any new file
                umask = os.umask(0)
                os.umask(umask)
                os.chmod(temporary, 0o666 & ~umask)
            os.replace(temporary, place)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)  # Ctrl-C may come when it has been renamed already
            raise
    except OSError as error:
        why = error.strerror or error
        raise type(error)(f"{path} cannot be written ({why}); the file that was there, if there was one, is kept") from error


def check_writable(path: str | os.PathLike[str], what: str = "") -> None:
    """Raise OSError, before any work, if it is seen that no file of this name can be written; `what` comes before the name."""
    name, folder = f"{what} {path}".lstrip(), _place(path).parent
    if os.path.isdir(path):
        raise IsADirectoryError(f"{name} is a directory; expected the name of a file")
    if not folder.is_dir():
        raise FileNotFoundError(f"{name}: there is no directory {folder}; create it first")
    try:
        tempfile.TemporaryFile(dir=folder).close()  # of no name, that nothing may be left of it
    except OSError as error:
        raise type(error)(f"{name}: the directory {folder} cannot be written to ({error.strerror})") from None


def remove_leftovers(path: str | os.PathLike[str]) -> None:
    """Of processes that were killed while they wrote this file: what write_whole calls them, and no other file."""
    place = _place(path)
    for left in place.parent.glob(glob.escape(f".{place.name}.") + "[a-z0-9_]" * 8 + _ENDING):  # as mkstemp makes them
        left.unlink(missing_ok=True)


def _place(path: str | os.PathLike[str]) -> Path:
    """The file itself: of a link, what it points to."""
    return Path(os.path.realpath(path) if os.path.islink(path) else path)


def load(path: str | os.PathLike[str], backend: str | Backend = "cpu", precision: str = "exact") -> MLP:
    """The network saved in a file, on any backend, with the products of any precision.

    OSError: the file cannot be read.  ValueError: it is not a model file of bpgpu, or not a whole one.
    """
    from .mlp import MLP

    backend = get_backend(backend)
    header, tensors = _read(path, "bpgpu", lambda name: not name.startswith("run."))
    if header is None:
        raise ValueError(f"{path} is a safetensors file but not a model of bpgpu: its header has no entry 'bpgpu'")
    if "weights.0" in tensors:
        backend = backend.at(precision, tensors["weights.0"].dtype)
    try:
        a = json.loads(header)
        _check_tensors(a["layers"], tensors)
        net = MLP(
            a["layers"], activation=a["activations"], loss=a["loss"], output_activation=a["output_activation"],
            reduction=a["reduction"], dtype=tensors["weights.0"].dtype, seed=a["seed"], backend=backend, precision=precision,
            dropout=a.get("dropout", 0.0),
        )  # fmt: skip
        net.epochs_trained, net.classes = int(a["epochs_trained"]), tuple(a["classes"]) if a["classes"] else None
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or from another version of bpgpu: {error}") from error
    theta = np.empty(net.theta.shape, net.dtype)
    for name, parts in zip(("weights", "biases"), net.views(theta), strict=True):
        for l, part in enumerate(parts):
            part[:] = tensors[f"{name}.{l}"]
    backend.write(net.theta, theta)
    return net


def load_run(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray[Any, Any]]]:
    """What a checkpoint has beside the model: its header, and its tensors without "run." before their names."""
    header, tensors = _read(path, "bpgpu_run", lambda name: name.startswith("run."))
    if header is None:
        raise ValueError(f"{path} is no checkpoint: its header has no entry 'bpgpu_run'; bpgpu.Checkpoint writes such files")
    return json.loads(header), {name[len("run.") :]: tensor for name, tensor in tensors.items()}


def _read(
    path: str | os.PathLike[str], entry: str, wanted: Callable[[str], bool]
) -> tuple[str | None, dict[str, np.ndarray[Any, Any]]]:
    """An entry of the header of a safetensors file, and, if there is one, the tensors with names that are wanted."""
    from safetensors import SafetensorError, safe_open

    with open(path, "rb"):  # the plain errors: not there, a directory, not readable
        pass
    try:
        with safe_open(path, framework="numpy") as file:
            header = (file.metadata() or {}).get(entry)
            names = [name for name in file.keys() if wanted(name)] if header else []  # noqa: SIM118
            return header, {name: file.get_tensor(name) for name in names}
    except (SafetensorError, TypeError) as error:
        raise ValueError(f"{path} is not a model file, or not a whole one: {error}") from error


def _check_tensors(layers: list[int], tensors: dict[str, np.ndarray[Any, Any]]) -> None:
    """Raise ValueError or KeyError unless they are the weights and biases of these layers, all of one dtype."""
    expected: dict[str, tuple[int, ...]] = {}
    for l, (i, o) in enumerate(pairwise(layers)):
        expected[f"weights.{l}"], expected[f"biases.{l}"] = (i, o), (o,)
    if set(expected) != set(tensors):
        raise ValueError(f"it holds {len(tensors)} tensors, not the {len(expected)} of layers {layers}")
    for name, shape in expected.items():
        found, dtype = tensors[name], tensors["weights.0"].dtype
        if found.shape != shape or found.dtype != dtype:
            raise ValueError(f"{name} is {found.dtype} {found.shape}, not {dtype} {shape}")
