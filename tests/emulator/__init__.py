"""A CUDA device that is not there: compiles CUDA C++ with g++ and runs it on NumPy arrays, one thread after the other.

It has the methods of the device object that bpgpu/cuda.py talks to, so that the whole CUDA backend runs without a GPU.
Where hardware may do one of several things it does the worst: memory that was not written is NaN or a large negative
number, asynchronous copies arrive when they are waited for and not before, barriers that not all threads reach are errors.
What depends on the order of threads shows when `order` changes; what reads or writes beyond an array shows with `sanitize`.

cuda_shim.h is CUDA's vocabulary, scheduler.cpp runs the threads.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

Array = np.ndarray[Any, Any]
Dimensions = tuple[int, int, int]

SHIM, SCHEDULER = (Path(__file__).with_name(name) for name in ("cuda_shim.h", "scheduler.cpp"))
ORDERS = ("ascending", "descending", "random")
SHARED_LIMIT = 227 << 10  # bytes a block may have; the same in scheduler.cpp

FLAGS = [
    *("-std=c++20", "-O2", "-ffp-contract=off", "-fno-fast-math", "-shared", "-fPIC", "-fno-exceptions"),
    # A template's shared memory must not become that of another library's template of the same name.
    *("-fvisibility=hidden", "-fno-gnu-unique", "-Wl,-Bsymbolic"),
]
SANITIZE = [
    *("-g", "-O1", "-fno-omit-frame-pointer", "-fsanitize=address,undefined,float-cast-overflow"),
    "-fno-sanitize-recover=all",
]
# What macros cannot turn into C++: an array of unknown length, and alignas behind a storage class.
DYNAMIC = re.compile(r"extern\s+__shared__\s+(?:(?:alignas|__align__)\s*\(.*?\)\s*)?(\w[\w\s:<>]*?)\s*\b(\w+)\s*\[\s*\]\s*;")
ALIGNED = re.compile(r"(__shared__\s+)alignas\b")


# -- the compiler ---------------------------------------------------------------------------------------------------------


@cache
def available() -> str | None:
    """Why there is no emulated device here, or None if there is one."""
    if sys.platform != "linux":
        return f"the emulated device needs Linux, this is {sys.platform}"
    if shutil.which("g++") is None:
        return "the emulated device needs g++"
    try:
        EmulatedDevice().compile('extern "C" __global__ void nothing() {}', ["nothing"])
    except (RuntimeError, OSError) as failure:
        return f"the emulated device does not work here: {failure}"
    return None


@cache
def sanitized_environment() -> dict[str, str] | None:
    """The environment of a Python process in which sanitize=True works, or None if there is none."""
    if available() is not None:
        return None
    library = Path(_gxx("-print-file-name=libasan.so").stdout.strip())
    if library.is_file() and not library.read_bytes().startswith(b"\x7fELF"):  # a script of the linker
        found = re.search(r"/\S+", library.read_text())
        library = Path(found.group()) if found else Path()
    if not library.is_file() or not library.is_absolute():
        return None
    return {
        **os.environ,
        "LD_PRELOAD": str(library),
        "ASAN_OPTIONS": "detect_leaks=0:detect_stack_use_after_return=0",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }


def _gxx(*arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    environment["LC_ALL"] = "C"
    return subprocess.run(["g++", *arguments], input=text, env=environment, capture_output=True, text=True, check=False)


@cache
def _flags() -> list[str]:
    # Without the instruction, fma() is a function of the C library: slow, the same bits.
    if platform.machine() == "x86_64" and re.search(r"^flags\b.*\bfma\b", Path("/proc/cpuinfo").read_text(), re.M):
        return [*FLAGS, "-mfma"]
    return FLAGS


@cache
def _folder() -> Path:
    """Of compiled libraries: one's own, since what lies there is run."""
    caches = Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser())
    for folder in (caches / "bpgpu-emulator", Path(tempfile.gettempdir()) / f"bpgpu-emulator-{os.getuid()}"):
        with suppress(OSError):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if folder.stat().st_uid == os.getuid() and os.access(folder, os.W_OK):
                return folder
    raise OSError(f"no place for compiled kernels: neither {caches} nor {tempfile.gettempdir()} can be written")


@cache
def _environment() -> str:
    """What the libraries depend on besides their own text and flags."""
    return _gxx("-dumpfullversion", "-dumpmachine").stdout + SHIM.read_text()


def _library(text: str, flags: list[str]) -> Path:
    """The library made of this text, from the cache if it is there."""
    key = hashlib.sha256("\0".join([_environment(), text, *flags]).encode()).hexdigest()[:32]
    library = _folder() / f"{key}.so"
    if not library.exists():
        with tempfile.TemporaryDirectory(dir=_folder()) as folder:
            made = Path(folder) / library.name
            done = _gxx(*["-x", "c++", "-include", str(SHIM), "-", "-o", str(made), "-x", "none", *flags], text=text)
            if done.returncode != 0:
                lines = done.stderr.splitlines()
                told = lines[:20] + ([f"... and {len(lines) - 20} more lines"] if len(lines) > 20 else [])
                raise RuntimeError("\n".join(["g++ does not compile these CUDA kernels:", *told]))
            made.replace(library)
    return library


def _kernels(source: str, names: Sequence[str], sanitize: bool) -> Path:
    flags = _flags()
    scheduler = _library(SCHEDULER.read_text(), [*flags, "-DEMULATED_SANITIZE"] if sanitize else flags)
    source = ALIGNED.sub(r"\1__align__", DYNAMIC.sub(r"DYNAMIC_SHARED(\1, \2);", source))
    entries = "\n".join(f"EMULATED_KERNEL({name})" for name in names)
    return _library(
        f'#line 1 "kernels.cu"\n{source}\n#line 1 "names"\n{entries}\n',
        [*flags, *(SANITIZE if sanitize else []), str(scheduler)],
    )


# -- the device -----------------------------------------------------------------------------------------------------------


class _Launch(ctypes.Structure):
    """The same in cuda_shim.h."""

    _fields_ = (
        *(("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared_bytes", ctypes.c_uint)),
        *(("cooperative", ctypes.c_int), ("order", ctypes.c_int), ("seed", ctypes.c_uint64)),
    )


@dataclass(frozen=True)
class Kernel:
    name: str
    call: Any


_one_at_a_time = threading.Lock()  # a library's threads and blocks are variables of the library


class Graph:
    """Launches that were recorded.  It keeps their arguments, not the arrays that they point to."""

    def __init__(self, device: EmulatedDevice) -> None:
        self._device = device
        self._launches: list[Callable[[], None]] = []

    def launch(self) -> None:
        self._device._refuse_while_recording("launch a graph")
        for launch in self._launches:
            launch()


class EmulatedDevice:
    """`order`: in which the threads of a block run from barrier to barrier, and the blocks of a grid.

    `sanitize` stops the process at the first access outside of an array or of shared memory, at unaligned vectors and at
    overflows; the process must have been started with sanitized_environment().
    """

    index = 0
    multiprocessors = 4

    def __init__(
        self, order: Literal["ascending", "descending", "random"] = "ascending", sanitize: bool = False, seed: int = 0
    ) -> None:
        if sanitize and not hasattr(ctypes.CDLL(None), "__asan_init"):
            raise RuntimeError("sanitize=True works only in a process started with sanitized_environment()")
        self._order = ORDERS.index(order)
        self._sanitize = sanitize
        self._seeds = np.random.default_rng(seed)
        self._of_thread = threading.local()

    def here(self) -> AbstractContextManager[None]:
        return nullcontext()

    # -- arrays --

    def empty(self, shape: int | tuple[int, ...], dtype: Any) -> Array:
        """Filled with what nobody would write."""
        array = np.empty(shape, dtype)
        kind = array.dtype.kind
        if kind in "fc":
            array.fill(np.nan)
        elif kind == "i":
            array.fill(np.iinfo(array.dtype).min)
        elif kind == "u":
            array.fill(np.iinfo(array.dtype).max)
        elif kind == "b":
            array.fill(True)
        else:
            array.reshape(-1).view(np.uint8).fill(0xFF)
        return array

    def asarray(self, array: Any) -> Array:
        self._refuse_while_recording("copy to the device")
        return np.array(array, order="C")

    def copy(self, array: Array) -> Array:
        self._refuse_while_recording("copy an array")
        return np.array(array, order="C")

    def write(self, target: Array, source: Any) -> None:
        self._refuse_while_recording("copy to the device")
        source = np.asarray(source)
        if target.shape != source.shape or target.dtype != source.dtype:
            raise ValueError(f"write {source.dtype}{source.shape} to {target.dtype}{target.shape}")
        np.copyto(target, source)

    def to_numpy(self, array: Array) -> Array:
        self._refuse_while_recording("copy from the device")
        return np.array(array, order="C")

    def address(self, array: Array) -> int:
        return int(array.__array_interface__["data"][0])

    # -- kernels --

    def compile(self, source: str, names: Sequence[str]) -> Mapping[str, Kernel]:
        """The kernels of these names in a CUDA C++ text (extern "C", by-value scalars and structs as parameters)."""
        library = ctypes.CDLL(str(_kernels(source, names, self._sanitize)))
        kernels = {}
        for name in names:
            call = library[f"emulated_launch_{name}"]
            call.restype = ctypes.c_char_p
            kernels[name] = Kernel(name, call)
        return kernels

    def launch(
        self,
        function: Kernel,
        grid: Dimensions,
        block: Dimensions,
        arguments: Sequence[Any],
        shared_bytes: int = 0,
        cooperative: bool = False,
    ) -> None:
        """Run the kernel for every thread of the grid.  Arguments are NumPy scalars, or arrays of shape () of a struct."""
        limits = zip((*grid, *block), (2**31 - 1, 65535, 65535, 1024, 1024, 64), strict=True)
        if not all(1 <= n <= limit for n, limit in limits) or block[0] * block[1] * block[2] > 1024:
            raise ValueError(f"no device runs '{function.name}' with grid {grid}, block {block}")
        if not 0 <= shared_bytes <= SHARED_LIMIT:
            raise ValueError(f"no device runs '{function.name}' with {shared_bytes} bytes of shared memory")
        for i, a in enumerate(arguments):
            if not isinstance(a, np.generic | np.ndarray) or a.shape != ():
                raise TypeError(f"'{function.name}': argument {i} is {a!r}, expected a NumPy scalar or an array of shape ()")
        values = [np.array(a) for a in arguments]
        self.issue(partial(self._run, function, grid, block, values, shared_bytes, cooperative))

    def resident(self, function: Kernel, threads: int) -> int:
        return 2

    def issue(self, launch: Callable[[], None]) -> None:
        """Run it now, or, inside of a recording, whenever the graph is launched."""
        recorded = getattr(self._of_thread, "recorded", None)
        if recorded is None:
            launch()
        else:
            recorded.append(launch)

    def _run(
        self, function: Kernel, grid: Dimensions, block: Dimensions, values: list[Array], shared_bytes: int, cooperative: bool
    ) -> None:
        n = len(values)
        how = _Launch(grid, block, shared_bytes, cooperative, self._order, int(self._seeds.integers(2**63)))
        addresses = (ctypes.c_void_p * n)(*(self.address(v) for v in values))
        sizes = (ctypes.c_size_t * n)(*(v.nbytes for v in values))
        with _one_at_a_time:
            failure = function.call(ctypes.byref(how), addresses, sizes, ctypes.c_size_t(n))
        if failure is not None:
            raise RuntimeError(failure.decode())

    def synchronize(self) -> None:
        self._refuse_while_recording("synchronize")
        ctypes.CDLL(None).fflush(None)  # what kernels printed

    # -- recording --

    @contextmanager
    def capture(self) -> Iterator[Graph]:
        """Launches inside the `with` block, by this Python thread, are recorded and not run."""
        self._refuse_while_recording("record")
        graph = Graph(self)
        self._of_thread.recorded = graph._launches
        try:
            yield graph
        finally:
            self._of_thread.recorded = None

    def _refuse_while_recording(self, what: str) -> None:
        if getattr(self._of_thread, "recorded", None) is not None:
            raise RuntimeError(f"cannot {what} while recording")
