"""How a competitor is measured in its process: time, memory, and whether it computes what the others do."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .networks import Array, Network

Data = tuple[Array, Array, Array, Array]  # X, y, X_test, y_test


class Skip(Exception):
    """The competitor has no such network, or the system no such figure; the message says why."""


@dataclass
class Run:
    """What is timed: call() is `steps` steps (or passes, where nothing is trained).

    first() is one step on the first batch; weights() are (i, o) each.  labels() are those of the batch.
    """

    call: Callable[[], Any]
    weights: Callable[[], list[Array]] | None = None
    steps: int = 1
    first: Callable[[], Any] | None = None
    flops: float | None = None  # of a call, where it is no training step
    labels: Callable[[], Array] | None = None


def says(run: Run, network: Network) -> list[float] | None:
    """What its first call computed, in a few numbers that all competitors must share."""
    if run.labels is None:
        return moved(run, network)
    labels = np.asarray(run.labels())
    return [float(share) for share in np.bincount(labels, minlength=network.layers[-1]) / len(labels)]


def moved(run: Run, network: Network) -> list[float] | None:
    """How far the first step moved each weight matrix: root mean square, relative to the matrix's own."""
    if run.weights is None:
        return None
    (run.first or run.call)()
    pairs = zip(run.weights(), network.weights(), strict=True)
    return [float(np.sqrt(np.square(W - W0, dtype=float).mean() / np.square(W0, dtype=float).mean())) for W, W0 in pairs]


def measure(run: Run, seconds: float, least: int) -> dict[str, Any]:
    """Time calls after a warm-up; the figures are of one step."""
    warm, calls = time.perf_counter() + min(0.3, seconds), 0
    while calls < 3 or time.perf_counter() < warm:
        run.call()
        calls += 1
    times: list[float] = []
    begun, cpu = time.perf_counter(), time.process_time()
    while len(times) * run.steps < least or len(times) < 5 or time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        run.call()
        times.append((time.perf_counter() - start) / run.steps)
    elapsed, cpu = time.perf_counter() - begun, time.process_time() - cpu
    low, median = np.percentile(times, [25, 50])
    return {
        "ms": 1e3 * float(low), "median_ms": 1e3 * float(median), "fastest_ms": 1e3 * min(times),
        "steps": len(times) * run.steps, "steps_a_call": run.steps, "cores_used": cpu / elapsed,
    }  # fmt: skip


def peak_resident() -> int | None:
    """Bytes: the most this process has had in memory; None where the system does not say."""
    try:  # on Linux ru_maxrss may be that of the process this one was forked from
        status = Path("/proc/self/status").read_text()
    except OSError:
        status = ""
    for line in status.splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> bool:
    """Let the peak be what is in memory now.  Only Linux can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def memory(run: Run) -> dict[str, Any]:
    """Bytes resident: before three steps, and at the most during them.  Skip: the system does not say."""
    if peak_resident() is None:
        raise Skip("this system does not say how much memory a process has had")
    forgotten = forget_peak()
    ready = peak_resident()
    for _ in range(3):
        run.call()
    return {"ready": ready if forgotten else None, "peak": peak_resident()}


def fitted(fit: Callable[..., Any], network: Network, data: Data, seed: int, goal: float, most: int) -> dict[str, Any]:
    """Seconds since the start, and accuracy on the test images, after each epoch until `goal` or `most` epochs.

    Two batches are trained on before, by another network: kernels are compiled and threads started by then.
    """
    X, y, X_test, y_test = data
    fit(network, (X[: 2 * network.batch], y[: 2 * network.batch], X_test[:100], y_test[:100]), seed, lambda accuracy: True)
    epochs: list[dict[str, float]] = []
    begun = time.perf_counter()

    def told(accuracy: float) -> bool:
        epochs.append({"seconds": time.perf_counter() - begun, "accuracy": float(accuracy)})
        return accuracy >= goal or len(epochs) == most

    fit(network, data, seed, told)
    return {"epochs": epochs, "goal": goal, "reached": epochs[-1]["accuracy"] >= goal}


def blas() -> dict[str, Any]:
    """NumPy's BLAS: as built and, where threadpoolctl is there to ask, as it runs."""
    built = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    found = {"name": built.get("name"), "version": built.get("version")}
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return found
    wanted = ("internal_api", "version", "architecture", "threading_layer", "num_threads")
    return found | {"running": [{k: i.get(k) for k in wanted} for i in threadpool_info() if i["user_api"] == "blas"]}
