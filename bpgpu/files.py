"""Model files: safetensors, the architecture in the header; never pickle."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .backend import Backend

if TYPE_CHECKING:
    from .mlp import MLP

_FIELDS = ("layers", "activations", "loss", "output_activation", "reduction", "seed", "epochs_trained", "classes")


def save(net: MLP, path: str | os.PathLike[str]) -> None:
    from safetensors.numpy import save as to_bytes

    theta = net.backend.to_numpy(net.theta)
    weights, biases = net.views(theta)
    tensors = {f"weights.{l}": W for l, W in enumerate(weights)} | {f"biases.{l}": b for l, b in enumerate(biases)}
    architecture = {name: getattr(net, name) for name in _FIELDS}
    write_whole(path, to_bytes(tensors, {"bpgpu": json.dumps(architecture)}))


def write_whole(path: str | os.PathLike[str], content: bytes) -> None:
    """Write a file under a temporary name beside it, then rename: at any moment the old file is there or the new one."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if os.name == "posix":  # mkstemp keeps a file to its owner; a model is readable like any new file
            umask = os.umask(0)
            os.umask(umask)
            os.chmod(temporary, 0o666 & ~umask)
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def load(path: str | os.PathLike[str], backend: str | Backend = "cpu") -> MLP:
    """The network saved in a file, on any backend.

    OSError: the file cannot be read.  ValueError: it is not a model file of bpgpu, or not a whole one.
    """
    from safetensors import SafetensorError, safe_open

    from .mlp import MLP

    with open(path, "rb"):  # the plain errors: not there, a directory, not readable
        pass
    try:
        with safe_open(path, framework="numpy") as file:
            header = (file.metadata() or {}).get("bpgpu")
            tensors: dict[str, np.ndarray[Any, Any]] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise ValueError(f"{path} is not a model file, or not a whole one: {error}") from error
    if header is None:
        raise ValueError(f"{path} is a safetensors file but not a model of bpgpu: its header has no entry 'bpgpu'")
    try:
        a = json.loads(header)
        net = MLP(
            a["layers"], activation=a["activations"], loss=a["loss"], output_activation=a["output_activation"],
            reduction=a["reduction"], dtype=tensors["weights.0"].dtype, seed=a["seed"], backend=backend,
        )  # fmt: skip
        net.epochs_trained, net.classes = int(a["epochs_trained"]), tuple(a["classes"]) if a["classes"] else None
        theta = np.empty(net.theta.shape, net.dtype)
        weights, biases = net.views(theta)
        for name, parts in (("weights", weights), ("biases", biases)):
            for l, part in enumerate(parts):
                found = tensors[f"{name}.{l}"]
                if found.shape != part.shape or found.dtype != part.dtype:
                    raise ValueError(f"{name}.{l} is {found.dtype} {found.shape}, not {part.dtype} {part.shape}")
                part[:] = found
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is damaged or from another version of bpgpu: {error}") from error
    net.backend.write(net.theta, theta)
    return net
