"""The CUDA backend: the same records as on the CPU, launched as CUDA C++ kernels on an NVIDIA GPU.

Everything that touches the machine goes through one small Device: gpu.py has the real one; the tests have another one that
compiles the same kernels with g++ and runs them on NumPy memory.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from math import prod
from typing import Any, Protocol

import numpy as np

from .backend import Array, Buffer, Program
from .checks import on_gpu, readable_bytes
from .kernels import records
from .kernels.cuda_source import COLUMNS, RECORDS, Kernel, source
from .kernels.machine import CHUNK
from .launching import KernelBackend, Record, new_record
from .tiles import Tile, plan

STRIDED = {  # threads of kernels that go over arrays in strides
    "update": 256, "dropout": 128, "squares": 128, "clip": 256, "parts": 256,
}  # fmt: skip
THREADS = STRIDED | {
    "column_sum": 128, "max_norm": 128, "gather": 128, "activate": 32, "amplify": 128, "output_delta": 32, "total": 32,
    "example_norms": 32, "clip_examples": 128,
}  # fmt: skip
MOST_BLOCKS = 4096  # of those that go in strides
WIDE_ROW = 256  # columns, from which on as many threads share a row
OPTIONS = ("--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")  # exact means exact
UNROLLED = 16  # steps that one graph launch holds; what is left over goes step by step
ADVANCE = Kernel("advance", None, (), (("THREADS", 1),))
LONGEST_ROW = 1 << 25  # bytes: inside a tile, kernels/product.cuh counts in 32 bits


Dimensions = tuple[int, int, int]


class Graph(Protocol):
    def launch(self) -> None: ...


class Event(Protocol):
    def synchronize(self) -> None: ...


class Products(Protocol):
    """Products on tensor cores, bpgpu/fast.py."""

    def plan(
        self, A: Array, B: Array, C: Array, *, A_transposed: bool, B_transposed: bool, add: bool, bias: Array | None, relu: bool
    ) -> Callable[[], None] | None:
        """What computes C = A B + bias, or adds it to C, or relu of that; A and B may be transposed arrays.  None: nothing."""


class Device(Protocol):
    """What the backend asks of the machine."""

    index: int  # of the GPU, in "cuda:1"
    multiprocessors: int

    def here(self) -> AbstractContextManager[Any]: ...
    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array: ...
    def asarray(self, array: Any) -> Array: ...
    def copy(self, array: Array) -> Array: ...
    def write(self, target: Array, source: Any) -> None: ...
    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]: ...
    def address(self, array: Array) -> int: ...
    def adopt(self, array: Any) -> Array: ...
    def free_bytes(self) -> int: ...
    def pinned(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]: ...
    def upload(self, target: Array, pinned: np.ndarray[Any, Any]) -> Event: ...
    def join(self) -> None: ...
    def products(self, precision: str) -> Products: ...
    def compile(self, source: str, names: Sequence[str]) -> Mapping[str, Any]: ...
    def launch(
        self,
        function: Any,
        grid: Dimensions,
        block: Dimensions,
        arguments: Sequence[Record],
        *,
        cooperative: bool = False,
    ) -> None: ...
    def resident(self, function: Any, threads: int) -> int: ...
    def capture(self) -> AbstractContextManager[Graph]: ...


class CUDAProgram(Program):
    """Recorded launches.  They are run as graphs, of one step or of UNROLLED, in which a last kernel counts the step."""

    def __init__(self, backend: CUDABackend) -> None:
        self._backend = backend
        self._launches: list[Callable[[], None]] = []
        self._alive: list[Any] = []
        self._graphs: dict[int, Graph] = {}

    def add(self, launch: Callable[[], None], alive: tuple[Any, ...]) -> None:
        self._launches.append(launch)
        self._alive.append(alive)

    def _graph(self, steps: int) -> Graph:
        if steps not in self._graphs:
            device, step = self._backend.device, self._backend.step_record
            advance = self._backend.function(ADVANCE)
            with device.capture() as graph:
                for _ in range(steps):
                    for launch in self._launches:
                        launch()
                    device.launch(advance, (1, 1, 1), (1, 1, 1), (step,))
            self._graphs[steps] = graph
        return self._graphs[steps]

    def _run(self, first_step: int, steps: int) -> None:
        with self._backend.lock:
            self._backend.device.write(self._backend.step, np.array([first_step]))
            for size in (UNROLLED, 1):
                while steps >= size:
                    self._graph(size).launch()
                    steps -= size


class CUDABuffer(Buffer):
    """Filled through page-locked memory, from which the GPU copies while it computes."""

    def __init__(self, backend: CUDABackend, shape: tuple[int, ...], dtype: Any) -> None:
        super().__init__(backend, shape, dtype)
        self._copied: Event | None = None
        self._device, self._lock, self._pinned = backend.device, backend.lock, backend.device.pinned(shape, dtype)

    def fill(self, rows: int, read: Callable[[np.ndarray[Any, Any]], None]) -> None:
        if self._copied is not None:
            self._copied.synchronize()
        read(self._pinned[:rows])
        with self._lock:
            self._copied = self._device.upload(self.array[:rows], self._pinned[:rows])

    def __del__(self) -> None:
        if (copied := getattr(self, "_copied", None)) is not None:
            copied.synchronize()  # what it copies from and to is about to be given back


class CUDABackend(KernelBackend):
    """Operations on CuPy arrays by kernels/*.cu; bit for bit what the CPU backend computes."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device
        self.name = f"cuda:{device.index}" if device.index else "cuda"
        self.lock = threading.RLock()  # held where launches belong together that share what only one Python thread may use
        self.step, self._zero = (device.asarray(np.zeros(1, np.int64)) for _ in range(2))  # in a program, and outside of one
        self.step_record, self._outside = (new_record(records.STEP, step=device.address(a)) for a in (self.step, self._zero))
        self._functions: dict[Kernel, Any] = {}
        self._shared: tuple[Array, Array] = device.empty((0,), np.float64), device.empty((0,), np.int32)
        self._fast: dict[str, CUDABackend] = {}

    @contextmanager
    def _memory(self, nbytes: int) -> Iterator[Device]:
        """MemoryError: there is none, in one sentence."""
        try:
            yield self.device
        except MemoryError as error:
            free = readable_bytes(self.device.free_bytes())
            raise MemoryError(f"the GPU has {free} of memory free, and {readable_bytes(nbytes)} more are needed") from error

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        with self._memory(prod(shape) * np.dtype(dtype).itemsize) as device:
            return device.empty(shape, dtype)

    def asarray(self, array: Any) -> Array:
        array = array if on_gpu(array) else np.asarray(array)
        with self._memory(array.nbytes) as device:
            return device.asarray(array)

    def copy(self, array: Array) -> Array:
        with self._memory(array.nbytes) as device:
            return device.copy(array)

    def adopt(self, array: Any, name: str) -> Any:
        if not on_gpu(array):
            return array
        try:
            return self.device.adopt(array)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise TypeError(f"{name} cannot be used on this GPU: {str(error).splitlines()[0]}") from error

    def free_bytes(self) -> float:
        return 0.9 * self.device.free_bytes()  # the rest is for kernels, graphs, partial sums and gaps

    def buffer(self, shape: tuple[int, ...], dtype: Any) -> CUDABuffer:
        return CUDABuffer(self, shape, dtype)

    def join(self) -> None:
        with self.lock:
            self.device.join()

    def _at(self, precision: str) -> CUDABackend:
        if precision not in self._fast:
            from .fast import FastBackend

            self._fast[precision] = FastBackend(self, precision)
        return self._fast[precision]

    def write(self, target: Array, source: Any) -> None:
        with self._memory(getattr(source, "nbytes", 0)) as device:
            device.write(target, source)

    def here(self) -> AbstractContextManager[Any]:
        return self.device.here()

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        return array if isinstance(array, np.ndarray) else self.device.to_numpy(array)

    def address(self, array: Array) -> int:
        return self.device.address(array)

    def function(self, kernel: Kernel) -> Any:
        """The compiled kernel."""
        if kernel not in self._functions:
            self._functions[kernel] = self.device.compile(source(kernel), [kernel.entry])[kernel.entry]
        return self._functions[kernel]

    def plan(self, dtype: str, rows: int, cols: int, K: int) -> tuple[Tile, int]:
        """The tile of a product, and over how many blocks its sums are cut."""
        return plan(dtype, rows, cols, K, self.device.multiprocessors)

    def _new_program(self) -> CUDAProgram:
        return CUDAProgram(self)

    def _issue(self, kernel: Kernel, grid: Dimensions, arguments: tuple[Record, ...], alive: Any) -> None:
        self._do(partial(self.device.launch, self.function(kernel), grid, (kernel.threads, 1, 1), arguments), alive)

    def _do(self, launch: Callable[[], None], alive: Any) -> None:
        recorder = self.recorder
        if isinstance(recorder, CUDAProgram):
            recorder.add(launch, alive)
        else:
            launch()

    def _launch(self, name: str, dtype: str | None, options: tuple[str, ...], job: Record, items: int, *alive: Any) -> None:
        threads = self._threads(name, job)
        of_block = {"column_sum": COLUMNS, "max_norm": threads}.get(name, threads if name in STRIDED else 1)
        blocks = -(-items // of_block)
        step = self._outside if self.recorder is None else self.step_record
        arguments = (job, step) if "STEP" in RECORDS[name] else (job,)
        blocks = min(blocks, MOST_BLOCKS) if name in STRIDED else blocks
        self._issue(Kernel(name, dtype, options, (("THREADS", threads),)), (blocks, 1, 1), arguments, alive)

    def _threads(self, name: str, job: Record) -> int:
        """Of a block."""
        wide = name in ("activate", "output_delta") and int(job["columns"]) > WIDE_ROW
        return WIDE_ROW if wide else THREADS[name]

    def _launch_product(self, name: str, dtype: str, option: str, product: Record, job: Record, *alive: Any) -> None:
        self._issue_product(name, dtype, option, product, (job,), 0, alive)

    def _launch_gradient(self, dtype: str, rule: str, product: Record, job: Record, sums: Record, *alive: Any) -> None:
        self._issue_product("dense_gradient", dtype, rule, product, (job, sums), -(-int(sums["columns"]) // COLUMNS), alive)

    def _issue_product(
        self, name: str, dtype: str, option: str, product: Record, jobs: tuple[Record, ...], more_blocks: int, alive: Any
    ) -> None:
        """`more_blocks` come before those of the product's tiles."""
        rows, cols, K = (int(product[size]) for size in "MNK")
        if (longest := max(int(product[step]) for step in ("A_row", "A_k", "B_row"))) > LONGEST_ROW:
            raise ValueError(
                f"a row of {longest} bytes; on the GPU a row may have {LONGEST_ROW}: use fewer units in that layer"
            )
        tile, split = self.plan(dtype, rows, cols, K)
        tiles = -(-rows // tile.BM) * -(-cols // tile.BN)
        chunks = -(-K // CHUNK)
        kernel = Kernel(name, dtype, (option,), (*tile.macros.items(), ("ALIGNED", _aligned(name, dtype, product))))
        with self.lock:
            room = None
            if split > 1:
                room = self._workspace(tiles * chunks * tile.BM * tile.BN * np.dtype(dtype).itemsize // 8, tiles)
            if room is None:
                split = 1
            cut = new_record(records.SPLIT, steps=-(-chunks // split) * CHUNK)
            if room is not None:
                cut["partials"], cut["arrived"] = map(self.address, room)
            self._issue(kernel, (more_blocks + tiles, split, 1), (product, cut, *jobs), (alive, room))

    def _workspace(self, partials: int, tiles: int) -> tuple[Array, Array] | None:
        """At least this much of what all products share: sums of chunks, and zeros that count the blocks of a tile.

        None: that would take a good part of the memory that is free, which others may count on.
        """
        if len(self._shared[0]) < partials or len(self._shared[1]) < tiles:
            if not self._fits(partials, tiles):
                return None
            self._shared = self._new_workspace(max(partials, len(self._shared[0])), max(tiles, len(self._shared[1])))
        return self._shared

    def _fits(self, partials: int, tiles: int) -> bool:
        return 8 * partials + 4 * tiles <= self.free_bytes() / 32

    def _new_workspace(self, partials: int, tiles: int) -> tuple[Array, Array]:
        return self.empty((partials,), np.float64), self.asarray(np.zeros(tiles, np.int32))


def _aligned(name: str, dtype: str, product: Record) -> int:
    """Whether operands that do not lie along k can be copied 16 bytes at a time."""
    addresses, sizes = {
        "dense_forward": (("B", "B_row"), "N"), "hidden_delta": ((), ""), "dense_gradient": (("A", "A_k", "B", "B_row"), "MN"),
    }[name]  # fmt: skip
    words = [int(product[field]) for field in addresses] + [int(product[size]) * np.dtype(dtype).itemsize for size in sizes]
    return int(all(word % 16 == 0 for word in words))
