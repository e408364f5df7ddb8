"""A certificate of the machine it runs on: are gradients true here, and are their bits those that the library promises?"""

from __future__ import annotations

import itertools
import math
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .backend import Backend, BackendUnavailable
from .callbacks import Callback, Checkpoint
from .cpu import CPUBackend
from .devices import backends, get_backend
from .kernels.names import ACTIVATIONS
from .mlp import MLP
from .optim import SGD, Adam, RMSprop
from .team import thread_count

if TYPE_CHECKING:
    from .fitting import Progress

LAYERS = (19, 300, 33, 5)  # products longer than a chunk, and no size a multiple of a vector
# Worst errors that rounding explains, of the largest number of an array or the lengths of both vectors; float32: a few layers
# of sums of 300 terms, 2^-24 each; float64 differences: truncation h^4 and rounding 1e-16 / h of a five-point formula
LIMITS = {"float32": 2e-6, "float64": 1e-14, "difference": 1e-9, "steps": 1e-12}


@dataclass(frozen=True)
class Check:
    """One property: did it hold (None: it cannot be checked here), the worst error and what it may be, and what was done."""

    name: str
    passed: bool | None
    worst: float | None
    limit: float | None
    what: str
    seconds: float


class _Unavailable(Exception):
    """The check cannot be made here; the message says why."""


def certify(cpu: Backend | None = None, gpu: Backend | None = None) -> list[Check]:
    """Check the CPU backend and, where there is one, the GPU; takes a few seconds once the kernels are compiled."""
    cpu, counts = cpu or get_backend("cpu"), _counts()
    checks: list[tuple[str, str, Callable[[], tuple[float, float]]]] = [
        ("true gradients", "of every activation and loss against differences of the loss, float64", lambda: _differences(cpu)),
        ("plain NumPy", "gradients of all parameters against the reference backend, both dtypes", lambda: _reference(cpu)),
        ("training step", "parameters after some steps of every rule, against the reference backend", lambda: _steps(cpu)),
        ("adjoint", "<J v, u> = <v, J^T u> of the network and its reverse", lambda: _adjoint(cpu)),
        ("single examples", "norms of per-example gradients against the gradients", lambda: _examples(cpu)),
        ("run to run", "parameters that differ after the same training twice", lambda: _twice(cpu)),
        ("batch position", "outputs that differ between a row alone and in a batch", lambda: _position(cpu)),
        ("threads", f"parameters that differ after training on {', '.join(map(str, counts))} threads", lambda: _threads(cpu)),
        ("resume", "parameters that differ after an interruption and going on from a checkpoint", lambda: _resume(cpu)),
        ("CPU and GPU", "parameters that differ after training on either", lambda: _gpu(cpu, gpu)),
    ]
    return [_run(*check) for check in checks]


def _run(name: str, what: str, check: Callable[[], tuple[float, float]]) -> Check:
    begun = time.perf_counter()
    try:
        worst, limit = check()
    except _Unavailable as reason:
        return Check(name, None, None, None, f"not available: {reason}", time.perf_counter() - begun)
    except Exception as error:  # whatever goes wrong here is a finding, and the other checks are still wanted
        what = f"ended with {type(error).__name__}: {error}"
        return Check(name, False, None, None, what, time.perf_counter() - begun)
    return Check(name, bool(worst <= limit), worst, limit, what, time.perf_counter() - begun)  # NaN has not passed


def report(checks: list[Check]) -> str:
    """The certificate as a table."""
    words = {True: "pass", False: "FAIL", None: "-"}
    lines = [f"{'check':<18}{'':<6}{'worst':>10}{'limit':>10}{'s':>7}  what"]
    for c in checks:
        numbers = "".join(f"{'-' if x is None else f'{x:.3g}':>10}" for x in (c.worst, c.limit))
        lines.append(f"{c.name:<18}{words[c.passed]:<6}{numbers}{c.seconds:7.2f}  {c.what}")
    failed = [c.name for c in checks if c.passed is False]
    lines.append(f"FAILED: {', '.join(failed)}" if failed else "everything that can be checked here holds")
    return "\n".join(lines)


def as_dict(checks: list[Check]) -> dict[str, Any]:
    """The certificate with what it was made on, for a bug report; plain numbers and strings."""
    from . import __version__
    from .gpu import description
    from .kernels.machine import target

    return {
        "bpgpu": __version__, "python": sys.version.split()[0], "numpy": np.__version__, "platform": platform.platform(),
        "cpu": target()[0], "threads": thread_count(), "blas": blas(), "backends": (found := backends()),
        "gpu": description() if found["cuda"] == "available" else None, "passed": all(c.passed is not False for c in checks),
        "checks": [asdict(c) | {"worst": c.worst if c.worst is not None and math.isfinite(c.worst) else None} for c in checks],
    }  # fmt: skip


def blas() -> str:
    """NumPy's, which the backend "numpy" uses: name and version."""
    build: Any = np.show_config(mode="dicts")
    found = build["Build Dependencies"]["blas"] if build else {}
    return f"{found.get('name', 'unknown')} {found.get('version', '')}".strip()


# -- what is checked -------------------------------------------------------------------------------------------------------


def _network(backend: Backend, activation: str = "tanh", dtype: str = "float32", **options: Any) -> MLP:
    return MLP(LAYERS, activation=activation, backend=backend, dtype=dtype, seed=11, **options)


def _data(n: int = 70) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    rng = np.random.default_rng(5)
    return rng.standard_normal((n, LAYERS[0])), rng.integers(0, LAYERS[-1], n)


def _different(a: Any, b: Any) -> float:
    """How many numbers of two arrays have other bits."""
    a, b = np.asarray(a), np.asarray(b)
    return float((a.view(f"u{a.itemsize}") != b.view(f"u{b.itemsize}")).sum())


def _worst(errors: list[float]) -> float:
    """The largest; NaN if one is."""
    return float(np.max(errors))


def _counts() -> list[int]:
    """Of threads."""
    return sorted({1, 2, 3, thread_count()})


def _differences(cpu: Backend) -> tuple[float, float]:
    """Each activation in the hidden layers and, with a loss that goes with it, in the output layer."""
    errors, h, rng, (X, y) = [], 1e-4, np.random.default_rng(1), _data(12)
    targets = 2 * rng.standard_normal((len(X), LAYERS[-1]))  # on both sides of huber's bend
    losses = itertools.cycle(("squared_error", "absolute_error", "huber"))
    cases: list[tuple[str, dict[str, str], Any]] = [
        (f, {"loss": loss, "output_activation": f}, targets) for f, loss in zip(ACTIVATIONS, losses, strict=False)
    ]
    cases += [("tanh", {"loss": loss}, y) for loss in ("cross_entropy", "binary_cross_entropy")]
    for activation, of_output, target in cases:
        net = _network(cpu, activation, "float64", **of_output)
        gradient, theta = net.gradient(X, target)[1], net.theta.copy()
        for _ in range(2):
            v = rng.standard_normal(theta.shape)
            v /= np.linalg.norm(v)
            L = []
            for k in (-2, -1, 1, 2):
                net.theta = theta + k * h * v
                L.append(net.gradient(X, target)[0])
            net.theta = theta
            slope = (L[0] - 8 * L[1] + 8 * L[2] - L[3]) / (12 * h)
            errors.append(abs(float(gradient @ v) - slope) / float(np.linalg.norm(gradient)))
    return _worst(errors), LIMITS["difference"]


def _reference(cpu: Backend) -> tuple[float, float]:
    """The worst of both dtypes, in units of float32's limit."""
    errors, (X, y) = [], _data()
    for activation in ("relu", "tanh"):
        for dtype in ("float32", "float64"):
            nets = [_network(b, activation, dtype) for b in (cpu, get_backend("numpy"))]
            mine, reference = (net.backward(net.forward(X), y) for net in nets)
            for a, b in zip((*mine.dW, *mine.db), (*reference.dW, *reference.db), strict=True):
                error = float(abs(a - b).max() / abs(b).max())
                errors.append(error * LIMITS["float32"] / LIMITS[dtype])
    return _worst(errors), LIMITS["float32"]


def _steps(cpu: Backend) -> tuple[float, float]:
    """The worst error of theta, of how far the steps have moved it."""
    errors, (X, y) = [], _data()
    for optimizer in (
        SGD(0.1, weight_decay=0.01), SGD(0.1, momentum=0.9, l1=0.001), SGD(0.1, momentum=0.9, nesterov=True),
        RMSprop(0.01, epsilon=1e-3), Adam(0.01, epsilon=1e-3),
    ):  # fmt: skip
        nets = [_network(b, dtype="float64", dropout=0.2) for b in (cpu, get_backend("numpy"))]
        begun = nets[1].theta.copy()
        for net in nets:
            net.fit(X, y, epochs=2, batch_size=32, optimizer=optimizer)
        mine, reference = (net.theta for net in nets)
        errors.append(float(abs(mine - reference).max() / abs(reference - begun).max()))
    return _worst(errors), LIMITS["steps"]


def _adjoint(cpu: Backend) -> tuple[float, float]:
    errors, rng, (X, _) = [], np.random.default_rng(2), _data()
    for activation in ("relu", "tanh"):
        net = _network(cpu, activation, "float64")
        rev = net.reverse(net.forward(X))
        v, u = rng.standard_normal(X.shape), rng.standard_normal((len(X), LAYERS[-1]))
        Jv, JTu = rev.tangent(v), rev(u).dX
        size = float(np.linalg.norm(Jv) * np.linalg.norm(u))
        errors.append(abs(float((Jv * u).sum() - (v * JTu).sum())) / size)
    return _worst(errors), LIMITS["float64"]


def _examples(cpu: Backend) -> tuple[float, float]:
    net, (X, y) = _network(cpu), _data()
    norms = np.linalg.norm(net.per_example_gradients(X, y).astype(np.float64), axis=1)
    return float(abs(net.per_example_norms(X, y).total / norms - 1).max()), LIMITS["float32"]


def _trained(backend: Backend, activation: str = "tanh") -> np.ndarray[Any, Any]:
    net, (X, y) = _network(backend, activation), _data()
    net.fit(X, y, epochs=3, batch_size=32, optimizer=SGD(0.1, momentum=0.9))
    return backend.to_numpy(net.theta)


def _twice(cpu: Backend) -> tuple[float, float]:
    return max(_different(_trained(cpu, f), _trained(cpu, f)) for f in ("relu", "tanh")), 0.0


def _position(cpu: Backend) -> tuple[float, float]:
    net, (X, _) = _network(cpu), _data()
    whole = net.outputs(X)
    return sum(_different(whole[n : n + 1], net.outputs(X[n : n + 1])) for n in range(0, len(X), 7)), 0.0


def _threads(cpu: Backend) -> tuple[float, float]:
    if not isinstance(cpu, CPUBackend):
        raise _Unavailable(f"the backend {cpu.name} has no number of threads")
    results = [_trained(CPUBackend(threads=n)) for n in _counts()]
    return max(_different(results[0], other) for other in results[1:]), 0.0


class _Interrupted(Exception):
    pass


class _Interruption(Callback):
    """In the middle of the second epoch, once a checkpoint was written."""

    saves = True  # so that it comes after the Checkpoint

    def on_batch_end(self, progress: Progress) -> None:
        if progress.epoch == 1:
            raise _Interrupted


def _resume(cpu: Backend) -> tuple[float, float]:
    (X, y), nets = _data(), [_network(cpu, dropout=0.2) for _ in range(3)]

    def fit(net: MLP, **options: Any) -> None:
        net.fit(X, y, epochs=4, batch_size=32, optimizer=SGD(0.1, momentum=0.9), **options)

    fit(nets[0])
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.safetensors"
        with suppress(_Interrupted):
            fit(nets[1], callbacks=[Checkpoint(path, seconds=0), _Interruption()])
        fit(nets[2], resume=path)
    return _different(nets[0].theta, nets[2].theta), 0.0


def _gpu(cpu: Backend, gpu: Backend | None) -> tuple[float, float]:
    try:
        gpu = gpu or get_backend("cuda")
    except BackendUnavailable as reason:
        raise _Unavailable(str(reason)) from None
    return max(_different(_trained(cpu, f), _trained(gpu, f)) for f in ("relu", "tanh")), 0.0
