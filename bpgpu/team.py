"""Threads of the CPU backend: how many, and the team of them that runs programs (its inner side is kernels/team.py)."""

from __future__ import annotations

import ctypes
import math
import os
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from .kernels import Key, addresses, records
from .kernels.machine import lanes

Array = np.ndarray[Any, Any]

_GROUPS, _OWN_GROUPS = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_QUOTAS = {"": ("cpu.max",), "cpu": ("cpu.cfs_quota_us", "cpu.cfs_period_us")}  # of cgroups v2 and v1: quota and period
MOST_THREADS = 1024
TEAM: tuple[Key, ...] = ("lead", ""), ("follow", "")  # kernels: of the calling thread, and of any other
HUGE_PAGE = 1 << 21  # bytes of Linux's large pages


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


class Team:
    """The calling thread and size - 1 others, asleep while there is nothing to run (kernels/team.py)."""

    def __init__(self, size: int) -> None:
        self.size, self.process = size, os.getpid()
        self._lock = threading.Lock()  # one program at a time
        allocate = _python_lock("PyThread_allocate_lock", ctypes.c_void_p)
        acquire = _python_lock("PyThread_acquire_lock_timed", ctypes.c_int)
        scratch_bytes = max(lanes(dtype).scratch_bytes for dtype in ("float32", "float64"))
        self._shared, self._scratch = aligned(records.TEAM.itemsize), aligned(max(HUGE_PAGE, size * scratch_bytes))
        self._members = aligned(size * records.MEMBER.itemsize)
        members = self._members.view(records.MEMBER)
        members["scratch"] = address_of(self._scratch) + scratch_bytes * np.arange(size)
        members["lock"] = locks = [allocate() for _ in range(size)]
        never = allocate()
        for lock in (*locks, never):  # all held, so that acquiring one is waiting
            acquire(ctypes.c_void_p(lock), ctypes.c_longlong(-1), ctypes.c_int(0))
        shared = self._shared.view(records.TEAM)[0]
        shared["size"], shared["members"], shared["never"] = size, address_of(self._members), never
        shared["acquire"] = ctypes.cast(acquire, ctypes.c_void_p).value
        shared["release"] = ctypes.cast(_python_lock("PyThread_release_lock", None), ctypes.c_void_p).value
        word, integer = ctypes.c_void_p, ctypes.c_int64
        kernel = ctypes.CFUNCTYPE(ctypes.c_int, word, word, integer, integer)
        self._lead, *follow = (kernel(address) for address in addresses(TEAM[:size]).values())
        self._unused = ctypes.create_string_buffer(8)  # where a kernel puts its result, None
        for rank in range(1, size):
            arguments = (self._unused, None, address_of(self._shared), rank)
            threading.Thread(target=follow[0], args=arguments, name=f"bpgpu-{rank}", daemon=True).start()
        weakref.finalize(self, _dismiss, (self._shared, self._members, self._scratch), self.process)

    def run(self, program: Array) -> None:
        with self._lock:
            self._lead(self._unused, None, address_of(program), address_of(self._shared))


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


def aligned(size: int, make: Callable[..., Array] = np.zeros) -> Array:
    """Bytes on whole cache lines; many of them on Linux's large pages, which NumPy asks for from 4 MiB on: addresses are
    found sooner there, and lie in the caches as they do in memory."""
    unit = HUGE_PAGE if size >= HUGE_PAGE else 64
    raw = make(size + unit, np.uint8)
    start = -address_of(raw) % unit
    return raw[start : start + size]


def address_of(array: Array) -> int:
    return int(array.ctypes.data)
