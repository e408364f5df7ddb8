"""The CPU backend: fills in the kernels' records, and keeps the team of threads that runs them."""

from __future__ import annotations

import ctypes
import math
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from .backend import Program
from .kernels import kernel, records
from .kernels.machine import CHUNK, GRAIN, Lanes, lanes
from .launching import KernelBackend, new_record

Array = np.ndarray[Any, Any]


_HUGE = 1 << 21  # bytes of Linux's large pages
_AHEAD = 4  # blocks below each other from which on B is packed ahead of a product
_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_QUOTAS = {"": ("cpu.max",), "cpu": ("cpu.cfs_quota_us", "cpu.cfs_period_us")}  # of cgroups v2 and v1: quota and period
MOST_THREADS = 1024
_READS = {  # what the finish of a product touches: the bytes between rows, and up to three matrices, as its job names them
    "dense_forward": ("A_row", "A", "Z"),
    "hidden_delta": ("saved_row", "saved", "dZ"),
    "dense_gradient": ("row", "parameter", "state1", "state2"),
}


def thread_count() -> int:
    """NUMBA_NUM_THREADS if set, otherwise the CPUs this process may use: its affinity and its cgroups' quotas."""
    if chosen := os.environ.get("NUMBA_NUM_THREADS"):
        if not chosen.isdecimal() or not 1 <= int(chosen) <= MOST_THREADS:
            raise ValueError(f"NUMBA_NUM_THREADS is {chosen!r}; expected a positive integer up to {MOST_THREADS}")
        return int(chosen)
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(count, MOST_THREADS, *(math.ceil(quota) for quota in _quotas())))


def _quotas() -> Iterator[float]:
    """How many CPUs the cgroups of this process may use together: of its own group and of all above it that have a quota."""
    try:
        lines = _OWN_GROUPS.read_text().splitlines()  # such as "0::/a/b" (v2), "4:cpu,cpuacct:/a/b" (v1)
    except OSError:  # no Linux
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        for controller in set(controllers.split(",")) & set(_QUOTAS):
            group = PurePosixPath(path.lstrip("/"))
            for folder in (group, *group.parents):  # in a container the own group may be the root, and the rest not be there
                try:
                    files = (_GROUPS / controller / folder / file for file in _QUOTAS[controller])
                    quota, period = map(int, " ".join(file.read_text() for file in files).split())
                except (OSError, ValueError):  # not there, or no quota ("max")
                    continue
                if quota > 0:  # -1: none
                    yield quota / period


def _address(array: Array) -> int:
    return int(array.ctypes.data)


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
        self._shared, self._scratch = _lines(records.TEAM.itemsize), _lines(max(_HUGE, size * scratch_bytes))
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
        weakref.finalize(self, _dismiss, (self._shared, self._members, self._scratch), self.process)

    def run(self, program: Array) -> None:
        with self._lock:
            self._lead(self._unused, None, _address(program), _address(self._shared))


def _dismiss(memory: tuple[Array, Array, Array], process: int) -> None:
    """Let the threads go.  Their memory stays (a few hundred kB each): they may still be on the way out."""
    if process == os.getpid():
        memory[0].view(records.TEAM)[0]["quit"] = 1
        release = _python_lock("PyThread_release_lock", None)
        for lock in memory[1].view(records.MEMBER)["lock"]:
            release(ctypes.c_void_p(int(lock)))
        _kept.append(memory)


_kept: list[tuple[Array, ...]] = []


def _python_lock(name: str, result: Any) -> Any:
    """One of CPython's lock functions, called without the interpreter's lock."""
    address = ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value
    assert address is not None
    return ctypes.CFUNCTYPE(result)(address)


def _lines(size: int, make: Callable[..., Array] = np.zeros) -> Array:
    """Bytes on whole cache lines; many of them on Linux's large pages, which NumPy asks for from 4 MiB on: addresses are
    found sooner there, and lie in the caches as they do in memory."""
    unit = _HUGE if size >= _HUGE else 64
    raw = make(size + unit, np.uint8)
    start = -_address(raw) % unit
    return raw[start : start + size]


class CPUProgram(Program):
    """Recorded kernels with their jobs; run() is one call for any number of steps."""

    def __init__(self, backend: CPUBackend) -> None:
        self._backend = backend
        self.entries: list[list[int]] = []  # the fields of records.ENTRY
        self.joining, self.first = False, 0  # whether entries are run together now, and with which one on
        self._alive: list[Any] = []  # jobs and arrays that the kernels reach by address
        self._program: Array | None = None

    def add(self, kernel: int, job: Array, items: int, alive: tuple[Any, ...]) -> None:
        if not self.joining:
            self.first = len(self.entries)
        self.entries.append([kernel, _address(job), items, 0, 0])
        self.entries[self.first][3:] = len(self.entries) - self.first, self.entries[self.first][4] + items
        self._alive.append((job, alive))
        self._program = None

    @contextmanager
    def before(self) -> Iterator[None]:
        """What is added in a with block goes ahead of the entries that are being joined."""
        first, joining = self.first if self.joining else len(self.entries), self.joining
        joined, self.joining = self.entries[first:], False
        del self.entries[first:]
        yield
        self.joining, self.first = joining, len(self.entries)
        self.entries += joined

    def _run(self, first_step: int, steps: int) -> None:
        if self._program is None:
            self._table = np.array([tuple(entry) for entry in self.entries], records.ENTRY)
            self._program = new_record(records.PROGRAM, entries=_address(self._table), length=len(self._table))
        self._program["first_step"], self._program["last_step"] = first_step, first_step + steps
        if steps > 0 and self.entries:
            self._backend.team.run(self._program)


class CPUBackend(KernelBackend):
    """Operations on NumPy arrays by kernels/*.py, on `threads` threads (default: what thread_count says)."""

    name = "cpu"

    def __init__(self, threads: int | None = None) -> None:
        if threads is not None and (not isinstance(threads, int) or not 1 <= threads <= MOST_THREADS):
            expected = f"a positive integer up to {MOST_THREADS}, or None for all CPUs of this process"
            raise ValueError(f"threads is {threads!r}; expected {expected}")
        super().__init__()
        self.threads = threads or thread_count()
        self._wanted = 6 * self.threads if self.threads > 1 else 1  # blocks of a product
        self._team: Team | None = None

    @property
    def team(self) -> Team:
        if self._team is None or self._team.process != os.getpid():  # a forked child has no threads but its own
            self._team = Team(self.threads)
        return self._team

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        """On whole cache lines: a vector that lies on two of them takes twice as long."""
        flat: Array = _lines(math.prod(shape) * np.dtype(dtype).itemsize, np.empty).view(dtype)
        return flat.reshape(shape)

    def asarray(self, array: Any) -> Array:
        return np.ascontiguousarray(array)

    def copy(self, array: Array) -> Array:
        return array.copy()

    def write(self, target: Array, source: Any) -> None:
        np.copyto(target, source)

    def to_numpy(self, array: Array) -> Array:
        return array

    def address(self, array: Array) -> int:
        if not isinstance(array, np.ndarray):
            raise TypeError(
                f"the array is a {type(array).__name__}; expected a NumPy array, as asarray of the backend gives it"
            )
        return _address(array)

    def _new_program(self) -> CPUProgram:
        return CPUProgram(self)

    def _launch(self, name: str, dtype: str | None, options: tuple[str, ...], job: Array, items: int, *alive: Any) -> None:
        address, recorder = kernel(name, dtype, *options), self.recorder
        program = recorder if isinstance(recorder, CPUProgram) else CPUProgram(self)
        program.add(address, job, -(-items // GRAIN.get(name, 1)), alive)
        if recorder is None:
            program.run()

    @contextmanager
    def together(self) -> Iterator[None]:
        program = self.recorder
        if isinstance(program, CPUProgram) and not program.joining:
            program.joining, program.first = True, len(program.entries)
            try:
                yield
            finally:
                program.joining = False
        else:
            yield

    def _launch_product(self, name: str, dtype: str, option: str, product: Array, job: Array, *alive: Any) -> None:
        M, N, K = (int(product[size]) for size in "MNK")
        rows, cols = product["row_block"], product["col_block"] = self._blocks(name, M, N, K, lanes(dtype))
        product["finish"], product["finish_job"] = kernel(name, dtype, option), _address(job)
        down, across, chunks, program = -(-M // rows), -(-N // cols), -(-K // CHUNK), self.recorder
        few = down * across < self._wanted and chunks > 1
        # blocks below each other share what is packed of B: in one item if it is one chunk, otherwise packed ahead
        shared = -(-down // -(-self._wanted // across)) if chunks == 1 and rows > lanes(dtype).rows else 1
        product["item_rows"], items = shared * rows, -(-down // shared) * across
        if few and isinstance(program, CPUProgram) and not program.joining:
            self._launch_chunks(dtype, product, items, job, *alive)
        else:
            for field, its in zip(("reads_row", "reads1", "reads2", "reads3"), _READS[name], strict=False):
                product[field] = job[its]
            if chunks > 1 and down >= _AHEAD and isinstance(program, CPUProgram):
                panels = self.empty((across * chunks, CHUNK * cols), dtype)
                product["panels"], alive = _address(panels), (*alive, panels)
                with program.before():
                    self._launch("pack_panels", dtype, (), product, len(panels), *alive)
            self._launch("product", dtype, (), product, items, job, *alive)

    def _launch_chunks(self, dtype: str, product: Array, blocks: int, *alive: Any) -> None:
        """A product in two stages: the chunks of k on their own, so that there is work for all threads, then their sum."""
        M, N, K = (int(product[size]) for size in "MNK")
        sums = self.empty((-(-K // CHUNK), M, N), dtype)
        B_k = sums.itemsize if product["B_transposed"] else product["B_row"]
        with self.together():
            for k, target in zip(range(0, K, CHUNK), sums, strict=True):
                chunk, job = product.copy(), new_record(records.UPDATE, parameter=_address(target), row=target.strides[0])
                chunk["A"], chunk["B"], chunk["K"] = (
                    product["A"] + k * product["A_k"],
                    product["B"] + k * B_k,
                    min(CHUNK, K - k),
                )
                chunk["finish"], chunk["finish_job"] = kernel("dense_gradient", dtype, "store"), _address(job)
                self._launch("product", dtype, (), chunk, blocks, job, sums, *alive)
        whole = new_record(
            records.CHUNKS, sums=_address(sums), sums_row=sums.strides[1], sums_chunk=sums.strides[0], chunks=len(sums),
            product=product,
        )  # fmt: skip
        self._launch("add_chunks", dtype, (), whole, blocks, sums, *alive)

    def _launch_gradient(self, dtype: str, rule: str, product: Array, job: Array, sums: Array, *alive: Any) -> None:
        with self.together():
            self._launch_product("dense_gradient", dtype, rule, product, job, *alive)
            self._launch("column_sum", dtype, (rule,), sums, int(sums["columns"]), *alive)

    def _blocks(self, name: str, M: int, N: int, K: int, V: Lanes) -> tuple[int, int]:
        """Rows and columns of a thread's block of C: evenly cut, and so small that every thread has several."""
        most_rows, most_cols = (256, 128) if name != "dense_gradient" else (128, 256)
        width = V.broad * V.lanes if V.rows > M else V.width
        rows, cols = _even(M, most_rows, V.rows), _even(N, most_cols, width)
        while -(-M // rows) * -(-N // cols) < self._wanted:
            shorter, narrower = rows > 4 * V.rows, cols > (2 if K > CHUNK else 1) * width
            # a gradient's rows first: two threads that write to the same rows of W take each other's cache lines away
            if shorter and (name == "dense_gradient" or not narrower):
                rows = _even(M, rows // 2, V.rows)
            elif narrower:
                cols = _even(N, cols // 2, width)
            else:
                break
        return rows, cols
