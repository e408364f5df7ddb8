"""The GPU itself, through CuPy: the Device that cuda.py computes on, whether there is one, and if not why not."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import numpy as np

from .backend import Array, BackendUnavailable
from .cuda import OPTIONS, CUDABackend, Dimensions, Event, Graph, Products
from .kernels.disk import kept
from .launching import Record


def machine_code(source: str, architecture: str) -> bytes:
    """For sm_90, or PTX for compute_90, with OPTIONS and nothing else: CuPy's own way to NVRTC adds -ftz=true behind them."""
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(source, "kernel.cu", (), ())
    try:
        nvrtc.compileProgram(program, (*OPTIONS, f"-arch={architecture}"))
        return bytes(nvrtc.getCUBIN(program) if architecture.startswith("sm_") else nvrtc.getPTX(program))
    except nvrtc.NVRTCError as error:
        raise RuntimeError(f"NVRTC for {architecture}: {nvrtc.getProgramLog(program)}") from error
    finally:
        nvrtc.destroyProgram(program)


class CuPyDevice:
    """An NVIDIA GPU through CuPy: arrays, the memory pool, streams, NVRTC.

    Everything is done on one stream, in order; copies from page-locked memory go on another beside it.  The stream is of the
    kind that CUDA keeps in order with the null stream, which is where CuPy computes; for a caller's own stream events do that.
    """

    def __init__(self, index: int = 0) -> None:
        import cupy

        self._cupy: Any = cupy
        self._device = cupy.cuda.Device(index)
        with self._device:
            self._stream = cupy.cuda.Stream()
            self._recording, self._copying = (cupy.cuda.Stream(non_blocking=True) for _ in range(2))
            self._issued, self._copied = (stream.record() for stream in (self._stream, self._copying))
            properties = cupy.cuda.runtime.getDeviceProperties(index)
        self.index = index
        self.multiprocessors = int(properties["multiProcessorCount"])

    @contextmanager
    def here(self) -> Iterator[Any]:
        with self._device:
            callers = self._cupy.cuda.get_current_stream()
            if callers in (self._stream, self._recording):
                yield self._cupy
                return
            if callers.ptr != 0:
                self._stream.wait_event(callers.record())
            with self._stream:
                yield self._cupy
            if callers.ptr != 0:
                callers.wait_event(self._stream.record())

    def empty(self, shape: tuple[int, ...], dtype: Any) -> Array:
        with self.here() as cupy:
            return cupy.empty(shape, dtype)

    def asarray(self, array: Any) -> Array:
        with self.here() as cupy:
            if not isinstance(array, np.ndarray):
                return cupy.ascontiguousarray(array)
            self.write(new := cupy.empty(array.shape, array.dtype), array)
            return new

    def copy(self, array: Array) -> Array:
        with self.here():
            return array.copy()

    def write(self, target: Array, source: Any) -> None:
        with self.here() as cupy:
            alike = isinstance(source, np.ndarray) and (source.dtype, source.shape) == (target.dtype, target.shape)
            if alike and target.flags.c_contiguous:
                target.set(source)  # cupy.asarray takes page-locked memory of the same size, and a second array on the GPU
            else:
                target[...] = cupy.asarray(source)

    def to_numpy(self, array: Array) -> np.ndarray[Any, Any]:
        with self.here() as cupy:
            return np.asarray(cupy.asnumpy(array))

    def address(self, array: Array) -> int:
        if not isinstance(array, self._cupy.ndarray):
            raise TypeError(
                f"the array is a {type(array).__name__}; expected one on the GPU, as asarray of its backend gives it"
            )
        return int(array.data.ptr)

    def adopt(self, array: Any) -> Array:
        with self._device:
            cupy = self._cupy
            if not isinstance(array, cupy.ndarray):
                array = cupy.from_dlpack(array) if hasattr(array, "__dlpack__") else cupy.asarray(array)
        if array.device.id != self.index:
            raise ValueError(
                f"it is on GPU {array.device.id}, and the network on GPU {self.index}, which backend='cuda:N' chooses"
            )
        return array

    def free_bytes(self) -> int:
        with self._device:
            free, _ = self._cupy.cuda.runtime.memGetInfo()
            return int(free + self._cupy.get_default_memory_pool().free_bytes())

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> np.ndarray[Any, Any]:
        from cupyx import empty_pinned

        with self._device:
            return np.asarray(empty_pinned(shape, dtype))

    def upload(self, target: Array, pinned: np.ndarray[Any, Any]) -> Event:
        with self._device:
            self._copying.wait_event(self._issued)
            target.set(pinned, stream=self._copying)
            self._copied = self._copying.record()
        return self._copied  # type: ignore[no-any-return]

    def join(self) -> None:
        with self._device:
            self._issued = self._stream.record()
            self._stream.wait_event(self._copied)

    def products(self, precision: str) -> Products:
        from .cublaslt import CuBLASLt

        with self._device:
            return CuBLASLt(self, precision)

    def compile(self, source: str, names: Sequence[str]) -> Mapping[str, Any]:
        with self.here() as cupy:
            capability, compiler = self._device.compute_capability, cupy.cuda.nvrtc
            architectures = [str(known) for known in compiler.getSupportedArchs()]
            # A GPU younger than the compiler gets PTX, of which its driver makes machine code.
            architecture = f"sm_{capability}" if capability in architectures else f"compute_{architectures[-1]}"
            key = " ".join((source, *OPTIONS, architecture, *map(str, compiler.getVersion())))
            module = cupy.cuda.Module()
            module.load(kept(key, partial(machine_code, source, architecture)))
            functions = {name: module.get_function(name) for name in names}
            for function in functions.values():  # loads it now, which must not happen inside of a capture
                cupy.cuda.driver.funcGetAttribute(cupy.cuda.driver.CU_FUNC_ATTRIBUTE_NUM_REGS, function.ptr)
            return functions

    def launch(
        self,
        function: Any,
        grid: Dimensions,
        block: Dimensions,
        arguments: Sequence[Record],
        *,
        cooperative: bool = False,
    ) -> None:
        with self.here():
            function(grid, block, tuple(arguments), enable_cooperative_groups=cooperative)

    def resident(self, function: Any, threads: int) -> int:
        """How many blocks of so many threads a multiprocessor runs at once."""
        with self._device:
            return int(self._cupy.cuda.driver.occupancyMaxActiveBlocksPerMultiprocessor(function.ptr, threads, 0))

    @contextmanager
    def capture(self) -> Iterator[Graph]:
        graph = _CuPyGraph(self)
        with self._device, self._recording:
            self._recording.begin_capture()
            try:
                yield graph
            finally:
                graph.graph = self._recording.end_capture()


class _CuPyGraph:
    def __init__(self, device: CuPyDevice) -> None:
        self.device, self.graph = device, None

    def launch(self) -> None:
        assert self.graph is not None
        with self.device.here():
            self.graph.launch()


def why_not() -> str | None:
    """None if a GPU can be used here; otherwise one sentence: what is missing, and what mends it."""
    if importlib.util.find_spec("cupy") is None:
        return "CuPy is not installed; python -m pip install 'bpgpu[cuda13]' (or 'bpgpu[cuda12]' for an older driver)"
    try:
        import cupy

        driver, own = int(cupy.cuda.runtime.driverGetVersion()), int(cupy.cuda.runtime.runtimeGetVersion())
        if driver == 0:
            return "there is no NVIDIA driver here; install one (nvidia-smi shows that it runs) or use backend='cpu'"
        if driver // 1000 < own // 1000:
            mend = "update the driver"
            if driver // 1000 == 12:
                mend = f"python -m pip uninstall -y cupy-cuda{own // 1000}x && python -m pip install 'bpgpu[cuda12]', or {mend}"
            return f"CuPy is for CUDA {_version(own)} and the NVIDIA driver for CUDA {_version(driver)}; {mend}"
        if not cupy.cuda.runtime.getDeviceCount():
            return "there is no NVIDIA GPU here; check nvidia-smi and CUDA_VISIBLE_DEVICES"
        cupy.cuda.nvrtc.getVersion()
        cupy.ones(1) + 1  # a kernel of CuPy's own
    except Exception as error:  # CuPy raises kinds of its own, and ImportError for a broken install
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        for what, sign in (("compiler", "nvrtc"), ("headers", "cuda headers")):
            if sign in reason.lower():
                return (
                    f"CuPy finds no {what} ({reason}); python -m pip install 'bpgpu[cuda13]' (or 'bpgpu[cuda12]', as CuPy is)"
                )
        return f"CuPy finds no usable GPU ({reason}); check nvidia-smi, CUDA_VISIBLE_DEVICES and python -c 'import cupy'"
    return None


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"


def description() -> str:
    """The GPUs, the driver and CuPy, where why_not() is None."""
    import cupy

    runtime = cupy.cuda.runtime
    names = [runtime.getDeviceProperties(i)["name"].decode() for i in range(runtime.getDeviceCount())]
    driver, own = _version(runtime.driverGetVersion()), _version(runtime.runtimeGetVersion())
    return f"{', '.join(names)}; driver for CUDA {driver}, CuPy {cupy.__version__} for CUDA {own}"


def open_device(index: int) -> CUDABackend:
    """The backend on GPU number `index`.  Raises BackendUnavailable if there is none."""
    if (reason := why_not()) is not None:
        raise BackendUnavailable(reason)
    import cupy

    count = int(cupy.cuda.runtime.getDeviceCount())
    if index >= count:
        raise BackendUnavailable(f"there is no GPU number {index}; this machine has {count}, counted from 0")
    return CUDABackend(CuPyDevice(index))
