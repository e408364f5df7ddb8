"""The CPU backend: fills in the kernels' records, and keeps the team of threads that runs them."""

from __future__ import annotations

import ctypes
import math
import os
import threading
import weakref
from pathlib import Path
from typing import Any

import numpy as np

from .backend import Backend, Program
from .kernels import kernel, records
from .kernels.machine import TILE_ROWS, lanes

Array = np.ndarray[Any, Any]


_QUOTA = Path("/sys/fs/cgroup/cpu.max")


def thread_count() -> int:
    """NUMBA_NUM_THREADS if set, otherwise the CPUs this process may use: its affinity and its cgroup's quota."""
    if chosen := os.environ.get("NUMBA_NUM_THREADS"):
        if not chosen.isdigit() or int(chosen) < 1:
            raise ValueError(f"NUMBA_NUM_THREADS is {chosen!r}; expected a positive integer")
        return int(chosen)
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = _QUOTA.read_text().split()
        count = min(count, math.ceil(int(quota) / int(period)))
    except (OSError, ValueError):  # no cgroup, or no quota ("max")
        pass
    return max(1, count)


def _address(array: Array | None) -> int:
    return 0 if array is None else int(array.ctypes.data)


def _record(dtype: np.dtype[np.void], **fields: int) -> Array:
    record = np.zeros((), dtype)
    for name, value in fields.items():
        record[name] = value
    return record


def _even(length: int, most: int, unit: int) -> int:
    """The size of parts, at most `most` and a multiple of `unit`, that cut `length` most evenly."""
    parts = -(-length // max(most, unit))
    return min(-(-length // parts // unit) * unit, most // unit * unit) or unit


class Team:
    """The calling thread and size - 1 others, asleep while there is nothing to run (kernels/team.py)."""

    def __init__(self, size: int) -> None:
        self.size, self.process = size, os.getpid()
        self._lock = threading.Lock()  # one program at a time
        allocate = _python_lock("PyThread_allocate_lock", ctypes.c_void_p)
        acquire = _python_lock("PyThread_acquire_lock_timed", ctypes.c_int)
        scratch_bytes = max(lanes(dtype).scratch_bytes for dtype in ("float32", "float64"))
        self._shared, self._scratch = _lines(records.TEAM.itemsize), _lines(size * scratch_bytes)
        self._members = _lines(size * records.MEMBER.itemsize)
        members = self._members.view(records.MEMBER)
        members["scratch"] = _address(self._scratch) + scratch_bytes * np.arange(size)
        members["lock"] = locks = [allocate() for _ in range(size)]
        never = allocate()
        for lock in (*locks, never):  # all held, so that acquiring one is waiting
            acquire(ctypes.c_void_p(lock), ctypes.c_longlong(-1), ctypes.c_int(0))
        shared = self._shared.view(records.TEAM)[0]
        shared["size"], shared["members"], shared["never"] = size, _address(self._members), never
        shared["acquire"] = ctypes.cast(acquire, ctypes.c_void_p).value
        shared["release"] = ctypes.cast(_python_lock("PyThread_release_lock", None), ctypes.c_void_p).value
        word, integer = ctypes.c_void_p, ctypes.c_int64
        self._lead = ctypes.CFUNCTYPE(ctypes.c_int, word, word, integer, integer)(kernel("lead"))
        follow = ctypes.CFUNCTYPE(ctypes.c_int, word, word, integer, integer)(kernel("follow")) if size > 1 else None
        self._unused = ctypes.create_string_buffer(8)  # where a kernel puts its result, None
        for rank in range(1, size):
            arguments = (self._unused, None, _address(self._shared), rank)
            threading.Thread(target=follow, args=arguments, name=f"bpgpu-{rank}", daemon=True).start()
        keep = (self._shared, self._members, self._scratch)
        weakref.finalize(self, _dismiss, self._lead, self._unused, keep, self.process)

    def run(self, program: Array) -> None:
        with self._lock:
            self._lead(self._unused, None, _address(program), _address(self._shared))


def _dismiss(lead: Any, unused: Any, keep: tuple[Array, ...], process: int) -> None:
    """Let the threads go.  Their memory stays (a few hundred kB): they may still be on the way out."""
    if process == os.getpid():
        lead(unused, None, 0, _address(keep[0]))
        _kept.append(keep)


_kept: list[tuple[Array, ...]] = []


def _python_lock(name: str, result: Any) -> Any:
    """One of CPython's lock functions, called without the interpreter's lock."""
    address = ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value
    assert address is not None
    return ctypes.CFUNCTYPE(result)(address)


def _lines(size: int) -> Array:
    """Zeroed bytes on whole cache lines."""
    raw = np.zeros(size + 64, np.uint8)
    start = -_address(raw) % 64
    return raw[start : start + size]


class CPUProgram(Program):
    """Recorded kernels with their jobs; run() is one call for any number of steps."""

    def __init__(self, backend: CPUBackend) -> None:
        self._backend = backend
        self._entries: list[tuple[int, int]] = []
        self._alive: list[Any] = []  # jobs and arrays that the kernels reach by address
        self._program: Array | None = None

    def add(self, kernel: int, job: Array, alive: tuple[Any, ...]) -> None:
        self._entries.append((kernel, _address(job)))
        self._alive.append((job, alive))
        self._program = None

    def _run(self, first_step: int, steps: int) -> None:
        if self._program is None:
            self._table = np.array(self._entries, records.ENTRY)
            self._program = _record(records.PROGRAM, entries=_address(self._table), length=len(self._table))
        self._program["first_step"], self._program["steps"] = first_step, steps
        self._backend.team.run(self._program)


class CPUBackend(Backend):
    """Operations on NumPy arrays by kernels/*.py, on `threads` threads (default: what thread_count says)."""

    name = "cpu"

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None and (not isinstance(threads, int) or threads < 1):
            raise ValueError(f"threads is {threads!r}; expected a positive integer, or None for all CPUs of this process")
        super().__init__()
        self.threads = threads or thread_count()
        self._team: Team | None = None

    @property
    def team(self) -> Team:
        if self._team is None or self._team.process != os.getpid():  # a forked child has no threads but its own
            self._team = Team(self.threads)
        return self._team

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return np.empty(shape, dtype)

    def asarray(self, array: Any) -> Array:
        return np.ascontiguousarray(array)

    def copy(self, array: Array) -> Array:
        return array.copy()

    def write(self, target: Array, source: Any) -> None:
        np.copyto(target, source)

    def to_numpy(self, array: Array) -> Array:
        return array

    def _new_program(self) -> CPUProgram:
        return CPUProgram(self)

    def _issue(self, address: int, job: Array, *alive: Any) -> None:
        recorder = self.recorder
        program = recorder if isinstance(recorder, CPUProgram) else CPUProgram(self)
        program.add(address, job, alive)
        if recorder is None:
            program.run()

    def _product(
        self, A: Array, A_transposed: bool, B: Array, B_transposed: bool, block: tuple[int, int], finish: int,
        finish_job: Array, *alive: Any,
    ) -> None:  # fmt: skip
        """One launch of kernels/product.py, in blocks of at most (rows, columns)."""
        (M, K), (A_row, A_k) = (A.shape[::-1], A.strides[::-1]) if A_transposed else (A.shape, A.strides)
        N = B.shape[0] if B_transposed else B.shape[1]
        rows, cols = self._blocks(M, N, block, lanes(B.dtype.name).width)
        job = _record(
            records.PRODUCT, A=_address(A), A_row=A_row, A_k=A_k, B=_address(B), B_row=B.strides[0],
            B_transposed=B_transposed, M=M, N=N, K=K, row_block=rows, col_block=cols,
            finish=finish, finish_job=_address(finish_job),
        )  # fmt: skip
        self._issue(kernel("product", B.dtype.name), job, A, B, finish_job, *alive)

    def _blocks(self, M: int, N: int, most: tuple[int, int], width: int) -> tuple[int, int]:
        """Rows and columns of a thread's block: evenly cut, and so small that every thread has several."""
        rows, cols = _even(M, most[0], TILE_ROWS), _even(N, most[1], width)
        wanted = 6 * self.threads if self.threads > 1 else 1
        while -(-M // rows) * -(-N // cols) < wanted and (cols > 2 * width or rows > 4 * TILE_ROWS):
            if cols > 2 * width:
                cols = _even(N, cols // 2, width)
            else:
                rows = _even(M, rows // 2, TILE_ROWS)
        return rows, cols

    def _dense_forward(self, X: Array, W: Array, b: Array, activation: str, A: Array, Z: Array | None) -> None:
        job = _record(
            records.FORWARD, bias=_address(b), A=_address(A), A_row=A.strides[0],
            Z=_address(Z), Z_row=0 if Z is None else Z.strides[0],
        )  # fmt: skip
        finish = kernel("dense_forward", X.dtype.name, activation)
        self._product(X, False, W, False, (192, 128), finish, job, b, A, Z)

    def _hidden_delta(self, dZ: Array, W: Array, saved: Array, activation: str, dZ_below: Array) -> None:
        job = _record(
            records.HIDDEN, saved=_address(saved), saved_row=saved.strides[0],
            dZ=_address(dZ_below), dZ_row=dZ_below.strides[0],
        )  # fmt: skip
        finish = kernel("hidden_delta", W.dtype.name, activation)
        self._product(W, False, dZ, True, (192, 128), finish, job, saved, dZ_below)

    def _dense_gradient(self, X: Array, dZ: Array, dW: Array, db: Array) -> None:
        self._weight_and_bias(X, dZ, dW, db, "store", None, None)

    def _dense_update(
        self, X: Array, dZ: Array, W: Array, b: Array, rule: str, hyper: Array, states: tuple[Array, Array] | None
    ) -> None:
        self._weight_and_bias(X, dZ, W, b, rule, hyper, states)

    def _weight_and_bias(
        self,
        X: Array,
        dZ: Array,
        W: Array,
        b: Array,
        rule: str,
        hyper: Array | None,
        states: tuple[Array, Array] | None,
    ) -> None:
        hyper_W, hyper_b = (None, None) if hyper is None else hyper
        state_W, state_b = states or (None, None)
        job = self._update_record(W, hyper_W, state_W)
        finish = kernel("dense_gradient", X.dtype.name, rule)
        self._product(X, True, dZ, False, (96, 256), finish, job, W, hyper, states)
        update = self._update_record(b, hyper_b, state_b)
        sums = _record(
            records.COLUMN_SUM, dZ=_address(dZ), dZ_row=dZ.strides[0], rows=len(dZ), columns=dZ.shape[1],
            update=_address(update),
        )  # fmt: skip
        self._issue(kernel("column_sum", X.dtype.name, rule), sums, update, dZ, b, hyper, states)

    @staticmethod
    def _update_record(parameter: Array, hyper: Array | None, state: Array | None) -> Array:
        return _record(
            records.UPDATE, parameter=_address(parameter), row=parameter.strides[0],
            hyper=_address(hyper), state=_address(state),
        )  # fmt: skip

    def _update(self, parameter: Array, gradient: Array, rule: str, hyper: Array, state: Array | None) -> None:
        update = self._update_record(parameter, hyper, state)
        job = _record(records.FLAT_UPDATE, gradient=_address(gradient), length=gradient.size, update=_address(update))
        self._issue(kernel("update", gradient.dtype.name, rule), job, update, parameter, gradient, hyper, state)

    def _activate(self, Z: Array, activation: str, A: Array) -> None:
        job = _record(
            records.ACTIVATE, Z=_address(Z), Z_row=Z.strides[0], rows=len(Z), columns=Z.shape[1],
            A=_address(A), A_row=A.strides[0],
        )  # fmt: skip
        self._issue(kernel("activate", Z.dtype.name, activation), job, Z, A)

    def _output_delta(self, Z: Array, y: Array, loss: str, activation: str, scale: Array, dZ: Array, losses: Array) -> None:
        job = _record(
            records.OUTPUT, Z=_address(Z), Z_row=Z.strides[0], rows=len(Z), columns=Z.shape[1],
            y=_address(y), y_row=y.strides[0], scale=_address(scale), scale_step=0 if len(scale) == 1 else scale.itemsize,
            dZ=_address(dZ), dZ_row=dZ.strides[0], losses=_address(losses),
        )  # fmt: skip
        targets = "labels" if y.ndim == 1 else "targets"
        self._issue(kernel("output_delta", Z.dtype.name, loss, activation, targets), job, Z, y, scale, dZ, losses)

    def _gather(self, source: Array, order: Array, target: Array) -> None:
        job = _record(
            records.GATHER, source=_address(source), row_bytes=target.nbytes // len(target), order=_address(order),
            rows=len(target), target=_address(target),
        )  # fmt: skip
        self._issue(kernel("gather"), job, source, order, target)

    def _total(self, numbers: Array, target: Array) -> None:
        job = _record(
            records.TOTAL, numbers=_address(numbers), length=len(numbers), target=_address(target),
            target_step=target.itemsize,
        )  # fmt: skip
        self._issue(kernel("total", numbers.dtype.name), job, numbers, target)
