"""How a backend is found by its name."""

from __future__ import annotations

import sys

from .backend import Backend
from .checks import nearest

_instances: dict[str, Backend] = {}
_said: set[str] = set()


def _why_no_cuda() -> str | None:
    from .gpu import why_not

    return why_not()


def get_backend(name: str | Backend = "cpu") -> Backend:
    """The backend called "cpu", "cuda" (or "cuda:1"), "auto" or "numpy"; one instance each for the whole process.

    "auto" is "cuda" where that can run and otherwise "cpu", which it says once on standard error; "numpy" is the readable
    reference.  A Backend is given back as it is.  Raises BackendUnavailable with the reason, ValueError for another name.
    """
    if isinstance(name, Backend):
        return name
    kind, _, index = name.partition(":") if isinstance(name, str) else (name, "", "")
    kind = nearest(kind, ("cpu", "cuda", "auto", "numpy"), "backend")
    if index and not (kind == "cuda" and index.isdigit()):
        raise ValueError(f"unknown backend {name!r}; only a GPU has a number, as in 'cuda:1'")
    if kind == "auto":
        kind = "cuda" if (reason := _why_no_cuda()) is None else "cpu"
        if reason is not None and reason not in _said:
            _said.add(reason)
            print(f"bpgpu: backend 'auto' is the CPU: {reason}", file=sys.stderr)
    key = f"cuda:{int(index or 0)}" if kind == "cuda" else kind
    if key not in _instances:
        _instances[key] = _open(kind, int(index or 0))
    return _instances[key]


def _open(kind: str, index: int) -> Backend:
    if kind == "cuda":
        from .gpu import open_device

        return open_device(index)
    if kind == "cpu":
        from .cpu import CPUBackend

        return CPUBackend()
    from .numpy_backend import NumPyBackend

    return NumPyBackend()


def backends() -> dict[str, str]:
    """What can run here: backend name -> "available", or why it is not."""
    return {"cpu": "available", "cuda": _why_no_cuda() or "available", "numpy": "available"}
