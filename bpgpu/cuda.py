"""The CUDA backend: the same records as on the CPU, launched as CUDA C++ kernels on an NVIDIA GPU.

Everything that touches the machine goes through one small Device: CuPyDevice is the real one; the tests have another one that
compiles the same kernels with g++ and runs them on NumPy memory.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, Protocol

import numpy as np

from .backend import Array, BackendUnavailable, Program
from .kernels import records
from .kernels.cuda_source import source
from .kernels.machine import CHUNK
from .launching import KernelBackend, Record, new_record
from .tiles import Tile, plan

SPREAD = {"update": 256, "dropout": 128, "squares": 128, "clip": 256, "max_norm": 128}  # an item a thread
THREADS = {**SPREAD, "gather": 128, "activate": 32, "output_delta": 32, "total": 32}  # the others: an item a block
OPTIONS = ("--std=c++17", "--fmad=false", "--ftz=false", "--prec-div=true", "--prec-sqrt=true")  # exact means exact
MOST_BLOCKS = 4096  # of a kernel that goes over its array in strides
COLUMNS = 32  # that a block of dense_gradient.cu sums
LONGEST_ROW = 1 << 25  # bytes: inside a tile, kernels/product.cuh counts in 32 bits


class Graph(Protocol):
    def launch(self) -> None: ...


class Device(Protocol):
    """What the backend asks of the machine."""

    name: str
    multiprocessors: int

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array: ...
    def asarray(self, array: Any) -> Array: ...
    def copy(self, array: Array) -> Array: ...
    def write(self, target: Array, source: Any) -> None: ...
    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]: ...
    def address(self, array: Array) -> int: ...
    def compile(self, source: str, names: Sequence[str]) -> Mapping[str, Any]: ...
    def launch(
        self, function: Any, grid: tuple[int, int, int], block: tuple[int, int, int], arguments: Sequence[Record]
    ) -> None: ...
    def capture(self) -> AbstractContextManager[Graph]: ...


class CUDAProgram(Program):
    """Recorded launches; the first run makes them one graph, whose end counts the step."""

    def __init__(self, backend: CUDABackend) -> None:
        self._backend = backend
        self._launches: list[tuple[Any, ...]] = []
        self._alive: list[Any] = []
        self._graph: Graph | None = None

    def add(self, launch: tuple[Any, ...], alive: tuple[Any, ...]) -> None:
        self._launches.append(launch)
        self._alive.append(alive)

    def _run(self, first_step: int, steps: int) -> None:
        backend = self._backend
        if self._graph is None:
            advance = backend.function("advance", None, ())
            with backend.device.capture() as self._graph:
                for launch in self._launches:
                    backend.device.launch(*launch)
                backend.device.launch(advance, (1, 1, 1), (1, 1, 1), (backend.step_record,))
        backend.device.write(backend.step, np.array([first_step]))
        for _ in range(steps):
            self._graph.launch()
        backend.device.write(backend.step, np.array([0]))


class CUDABackend(KernelBackend):
    """Operations on CuPy arrays by kernels/*.cu; bit for bit what the CPU backend computes."""

    name = "cuda"

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device = device
        self.step = device.asarray(np.zeros(1, np.int64))  # the number of the step in a program, 0 outside of one
        self.step_record = new_record(records.STEP, step=device.address(self.step))
        self._functions: dict[tuple[Any, ...], Any] = {}
        self._shared: tuple[Array, Array] = device.empty((0,), np.float64), device.empty((0,), np.int32)

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        return self.device.empty(shape, dtype)

    def asarray(self, array: Any) -> Array:
        return self.device.asarray(array)

    def copy(self, array: Array) -> Array:
        return self.device.copy(array)

    def write(self, target: Array, source: Any) -> None:
        self.device.write(target, source)

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        return self.device.to_numpy(array)

    def address(self, array: Array) -> int:
        return self.device.address(array)

    def function(self, name: str, dtype: str | None, options: tuple[str, ...], **sizes: int) -> Any:
        """The compiled kernel."""
        key = (name, dtype, options, *sizes.items())
        if key not in self._functions:
            text, entry = source(name, dtype, options, **sizes)
            self._functions[key] = self.device.compile(text, [entry])[entry]
        return self._functions[key]

    def plan(self, dtype: str, rows: int, cols: int, K: int) -> tuple[Tile, int]:
        """The tile of a product, and over how many blocks its sums are cut."""
        return plan(dtype, rows, cols, K, self.device.multiprocessors)

    def _new_program(self) -> CUDAProgram:
        return CUDAProgram(self)

    def _issue(
        self, function: Any, grid: tuple[int, int, int], threads: int, arguments: tuple[Record, ...], alive: Any
    ) -> None:
        launch = (function, grid, (threads, 1, 1), arguments)
        recorder = self.recorder
        if isinstance(recorder, CUDAProgram):
            recorder.add(launch, alive)
        else:
            self.device.launch(*launch)

    def _launch(self, name: str, dtype: str | None, options: tuple[str, ...], job: Record, items: int, *alive: Any) -> None:
        threads = THREADS[name]
        blocks = min(-(-items // threads), MOST_BLOCKS) if name in SPREAD else items
        arguments = (job, self.step_record) if name in ("gather", "dropout", "clip", "total") else (job,)
        self._issue(self.function(name, dtype, options, THREADS=threads), (blocks, 1, 1), threads, arguments, alive)

    def _launch_product(self, name: str, dtype: str, option: str, product: Record, job: Record, *alive: Any) -> None:
        self._issue_product(name, dtype, option, product, (job,), 0, alive)

    def _launch_gradient(self, dtype: str, rule: str, product: Record, job: Record, sums: Record, *alive: Any) -> None:
        self._issue_product("dense_gradient", dtype, rule, product, (job, sums), -(-int(sums["columns"]) // COLUMNS), alive)

    def _issue_product(
        self, name: str, dtype: str, option: str, product: Record, jobs: tuple[Record, ...], more_blocks: int, alive: Any
    ) -> None:
        """`more_blocks` come before those of the product's tiles."""
        rows, cols, K = (int(product[size]) for size in "MNK")
        if name == "hidden_delta":  # computed as dZ W^T, along the rows of its result
            rows, cols = cols, rows
        if (longest := max(int(product[step]) for step in ("A_row", "A_k", "B_row"))) > LONGEST_ROW:
            raise ValueError(
                f"a row of {longest} bytes; on the GPU a row may have {LONGEST_ROW}: use fewer units in that layer"
            )
        tile, split = self.plan(dtype, rows, cols, K)
        tiles = -(-rows // tile.BM) * -(-cols // tile.BN)
        chunks = -(-K // CHUNK)
        cut = new_record(records.SPLIT, steps=-(-chunks // split) * CHUNK)
        if split > 1:
            self._room(tiles * chunks * tile.BM * tile.BN * np.dtype(dtype).itemsize // 8, tiles)
            cut["partials"], cut["arrived"] = map(self.address, self._shared)
        function = self.function(name, dtype, (option,), **tile.macros, ALIGNED=_aligned(name, dtype, product))
        arguments = (product, cut, *jobs)
        self._issue(function, (more_blocks + tiles, split, 1), tile.threads, arguments, (alive, self._shared))

    def _room(self, partials: int, tiles: int) -> None:
        """At least this much in what all products share: sums of chunks, and zeros that count the blocks of a tile."""
        if len(self._shared[0]) < partials or len(self._shared[1]) < tiles:
            self._shared = (
                self.device.empty((max(partials, len(self._shared[0])),), np.float64),
                self.device.asarray(np.zeros(max(tiles, len(self._shared[1])), np.int32)),
            )


def _aligned(name: str, dtype: str, product: Record) -> int:
    """Whether operands that do not lie along k can be copied 16 bytes at a time."""
    addresses, sizes = {
        "dense_forward": (("B", "B_row"), "N"), "hidden_delta": ((), ""), "dense_gradient": (("A", "A_k", "B", "B_row"), "MN"),
    }[name]  # fmt: skip
    words = [int(product[field]) for field in addresses] + [int(product[size]) * np.dtype(dtype).itemsize for size in sizes]
    return int(all(word % 16 == 0 for word in words))


class CuPyDevice:
    """An NVIDIA GPU through CuPy: arrays, the memory pool, one stream, NVRTC with its cache on disk."""

    def __init__(self, index: int = 0) -> None:
        import cupy

        self._cupy: Any = cupy
        self._device = cupy.cuda.Device(index)
        with self._device:
            self._stream = cupy.cuda.Stream(non_blocking=True)
            properties = cupy.cuda.runtime.getDeviceProperties(index)
        self.name = properties["name"].decode()
        self.multiprocessors = int(properties["multiProcessorCount"])

    @contextmanager
    def _here(self) -> Iterator[Any]:
        with self._device, self._stream:
            yield self._cupy

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        with self._here() as cupy:
            return cupy.empty(shape, dtype)

    def asarray(self, array: Any) -> Array:
        with self._here() as cupy:
            return cupy.ascontiguousarray(cupy.asarray(array))

    def copy(self, array: Array) -> Array:
        with self._here():
            return array.copy()

    def write(self, target: Array, source: Any) -> None:
        with self._here() as cupy:
            target[...] = cupy.asarray(source)

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        with self._here() as cupy:
            return np.asarray(cupy.asnumpy(array))

    def address(self, array: Array) -> int:
        return int(array.data.ptr)

    def compile(self, source: str, names: Sequence[str]) -> Mapping[str, Any]:
        with self._here() as cupy:
            module = cupy.RawModule(code=source, options=OPTIONS)
            return {name: module.get_function(name) for name in names}

    def launch(
        self, function: Any, grid: tuple[int, int, int], block: tuple[int, int, int], arguments: Sequence[Record]
    ) -> None:
        with self._here():
            function(grid, block, tuple(arguments))

    @contextmanager
    def capture(self) -> Iterator[Graph]:
        graph = _CuPyGraph(self._stream)
        with self._here():
            self._stream.begin_capture()
            try:
                yield graph
            finally:
                graph.graph = self._stream.end_capture()


class _CuPyGraph:
    def __init__(self, stream: Any) -> None:
        self.stream, self.graph = stream, None

    def launch(self) -> None:
        assert self.graph is not None
        self.graph.launch(self.stream)


def why_not() -> str | None:
    """None if a GPU can be used here; otherwise one sentence: what is missing, and what mends it."""
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed; python -m pip install 'bpgpu[cuda13]' (or 'bpgpu[cuda12]' for an older driver)"
    try:
        import cupy

        count = int(cupy.cuda.runtime.getDeviceCount())
    except Exception as error:  # CuPy raises kinds of its own, and ImportError for a broken install
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        return f"CuPy finds no usable GPU ({reason}); check the driver with nvidia-smi, and that CuPy is for its CUDA version"
    return None if count else "there is no NVIDIA GPU here; check nvidia-smi and CUDA_VISIBLE_DEVICES"


def open_device(index: int) -> CUDABackend:
    """The backend on GPU number `index`.  Raises BackendUnavailable if there is none."""
    if (reason := why_not()) is not None:
        raise BackendUnavailable(reason)
    import cupy

    count = int(cupy.cuda.runtime.getDeviceCount())
    if index >= count:
        raise BackendUnavailable(f"there is no GPU number {index}; this machine has {count}, counted from 0")
    return CUDABackend(CuPyDevice(index))
