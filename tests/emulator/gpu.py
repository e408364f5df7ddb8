"""The emulated device with memory of its own: arrays as strict as CuPy's, a limit, and copies beside the computation.

CuPy's arrays answer to NumPy's functions but never mix with NumPy's arrays, none becomes the other by itself, and they compute
on the current GPU alone, which is number 0 outside of Device.here().  What the backend and the network do with the arrays of a
GPU is held to that here; what crosses to the host is counted.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import numpy as np

from . import EmulatedDevice

Host = np.ndarray[Any, Any]
METHODS, VIEWS = "all any argmax argmin astype copy max mean min sum".split(), ("ravel", "reshape")
PROPERTIES = "dtype itemsize nbytes ndim shape size strides".split()


_current = threading.local()  # the number of the GPU that this Python thread computes on


class Block:
    """A piece of the memory of a GPU: a thing that can be watched."""

    def __init__(self, index: int = 0) -> None:
        self.index = index


class GPUArray(np.lib.mixins.NDArrayOperatorsMixin):
    def __init__(self, host: Host, block: Block | None = None) -> None:
        self.host, self.block = host, block or Block()  # the block is given back when the last view of it is gone

    def __getattr__(self, name: str) -> Any:
        if name in METHODS:
            return lambda *a, **k: _out(getattr(self.host, name)(*_in((self, *a))[1:], **_in(k)), self.block)
        if name in VIEWS and self.host.flags.c_contiguous:
            return lambda *a, **k: GPUArray(getattr(self.host, name)(*a, **k), self.block)
        if name in PROPERTIES:
            return getattr(self.host, name)
        raise AttributeError(name)

    @property
    def flags(self) -> Any:
        return SimpleNamespace(c_contiguous=self.host.flags.c_contiguous, f_contiguous=self.host.flags.f_contiguous)

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        return {**self.host.__array_interface__, "version": 3}

    def __array__(self, dtype: Any = None, copy: Any = None) -> Host:
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    @property
    def T(self) -> GPUArray:
        return GPUArray(self.host.T, self.block)

    def get(self) -> Host:
        return self.host.copy()

    def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, **options: Any) -> Any:
        return _out(getattr(ufunc, method)(*_in(inputs), **_in(options)))

    def __array_function__(self, function: Any, types: Any, arguments: Any, options: Any) -> Any:
        return _out(function(*_in(arguments), **_in(options)))

    def __getitem__(self, index: Any) -> Any:
        views = isinstance(index, int | slice | tuple)
        return GPUArray(np.asarray((self.host if views else _in(self))[_in(index)]), self.block)

    def __setitem__(self, index: Any, values: Any) -> None:
        _in(self)[_in(index)] = _in(values)

    def __len__(self) -> int:
        return len(self.host)

    def __bool__(self) -> bool:
        return bool(self.host)

    def __int__(self) -> int:
        return int(self.host)

    def __float__(self) -> float:
        return float(self.host)

    def __str__(self) -> str:
        return str(self.host)

    def __format__(self, spec: str) -> str:
        return format(self.host[()] if self.ndim == 0 else self.host, spec)


def _in(value: Any) -> Any:
    """What is on the device, of arguments that must not be on the host, nor on another GPU than the current one."""
    if isinstance(value, GPUArray):
        if value.block.index != getattr(_current, "index", 0):
            raise RuntimeError(f"an array of GPU {value.block.index} in a computation on GPU {getattr(_current, 'index', 0)}")
        return value.host
    if isinstance(value, tuple | list):
        return type(value)(_in(v) for v in value)
    if isinstance(value, dict):
        return {k: _in(v) for k, v in value.items()}
    if isinstance(value, np.ndarray):
        raise TypeError(f"Unsupported type {type(value)}")
    return value


def _out(value: Any, block: Block | None = None) -> Any:
    block = block or Block(getattr(_current, "index", 0))
    return GPUArray(np.asarray(value), block) if isinstance(value, np.ndarray | np.generic) else value


def rounded(array: Host, precision: str) -> Host:
    """float32 numbers rounded to nearest, ties to even, to the fraction of bf16 (7 bits) or tf32 (10 bits)."""
    cut = 16 if precision == "bf16" else 13
    bits = np.ascontiguousarray(array).view(np.uint32)
    half = np.uint32((1 << (cut - 1)) - 1) + ((bits >> np.uint32(cut)) & np.uint32(1))
    return np.asarray(((bits + half) >> np.uint32(cut) << np.uint32(cut)).view(np.float32))


class Copy:
    """A copy that is under way: it may arrive at any time, so until somebody waits for it the target holds rubbish."""

    def __init__(self, target: Host, source: Host) -> None:
        self.target, self.source = target, source
        target.reshape(-1).view(np.uint8).fill(0xFF)

    def synchronize(self) -> None:
        np.copyto(self.target, self.source)


class GPU(EmulatedDevice):
    """`limit`: bytes of memory.  Counts the bytes that come to the host, the launches of graphs and the planned products."""

    def __init__(self, *, limit: int = 1 << 40, **options: Any) -> None:
        super().__init__(**options)
        self.limit, self.used, self.peak = limit, 0, 0
        self.downloaded = self.graphs = self.planned = 0
        self.copies: list[Copy] = []

    def _new(self, host: Host) -> GPUArray:
        if self.used + host.nbytes > self.limit:
            raise MemoryError(f"Out of memory allocating {host.nbytes} bytes (allocated so far: {self.used} bytes).")
        block, nbytes = Block(self.index), host.nbytes
        self.used += nbytes
        self.peak = max(self.peak, self.used)
        weakref.finalize(block, self._give_back, nbytes)
        return GPUArray(host, block)

    def _give_back(self, nbytes: int) -> None:
        self.used -= nbytes

    @contextmanager
    def here(self) -> Iterator[None]:
        before = getattr(_current, "index", 0)
        _current.index = self.index
        try:
            yield
        finally:
            _current.index = before

    def free_bytes(self) -> int:
        return self.limit - self.used

    def empty(self, shape: Any, dtype: Any) -> Any:
        return self._new(super().empty(shape, dtype))

    def asarray(self, array: Any) -> Any:
        if isinstance(array, GPUArray):
            return array if array.flags.c_contiguous else self.copy(array)
        return self._new(super().asarray(array))

    def copy(self, array: Any) -> Any:
        return self._new(super().copy(array.host))

    def write(self, target: Any, source: Any) -> None:
        host = source.host if isinstance(source, GPUArray) else np.broadcast_to(source, target.shape)
        super().write(target.host, host.astype(target.dtype))

    def to_numpy(self, array: Any) -> Host:
        self.downloaded += array.nbytes
        return super().to_numpy(array.host)

    def address(self, array: Any) -> int:
        if not isinstance(array, GPUArray) and array.ndim:
            raise TypeError("a kernel is given the address of an array on the host")
        return super().address(array.host if isinstance(array, GPUArray) else array)

    def adopt(self, array: Any) -> GPUArray:
        if not isinstance(array, GPUArray):
            raise TypeError("it is not an array of this device")
        return array

    def pinned(self, shape: tuple[int, ...], dtype: Any) -> Host:
        return super().empty(shape, dtype)

    def upload(self, target: Any, pinned: Host) -> Copy:
        self._refuse_while_recording("copy to the device")
        self.copies.append(Copy(target.host, pinned))
        return self.copies[-1]

    def join(self) -> None:
        while self.copies:
            self.copies.pop().synchronize()

    def products(self, precision: str) -> TensorCores:
        return TensorCores(self, precision)

    @contextmanager
    def capture(self) -> Iterator[Any]:
        with super().capture() as graph:
            yield _Counted(graph.launch, self)


class _Counted:
    """A graph whose launches are counted."""

    def __init__(self, launch: Callable[[], None], gpu: GPU) -> None:
        self._launch, self._gpu = launch, gpu

    def launch(self) -> None:
        self._gpu.graphs += 1
        self._launch()


class TensorCores:
    """What they do: operands rounded, sums in float32."""

    def __init__(self, gpu: GPU, precision: str) -> None:
        self.gpu, self.precision = gpu, precision

    def plan(
        self, A: Any, B: Any, C: Any, *, A_transposed: bool, B_transposed: bool, add: bool, bias: Any, relu: bool
    ) -> Callable[[], None] | None:
        if bias is not None and self.gpu.address(bias) % 16:
            raise ValueError("a bias of which 16 bytes at a time can not be read")
        if C.shape[1] % 4:  # one of those for which the real library may have no algorithm
            return None

        def multiply() -> None:
            left, right = (rounded(a.host, self.precision) for a in (A, B))
            product = (left.T if A_transposed else left) @ (right.T if B_transposed else right)
            C.host[...] = product + C.host if add else product
            C.host[...] += 0 if bias is None else bias.host
            if relu:
                np.maximum(C.host, 0, out=C.host)

        self.gpu.planned += 1
        return lambda: self.gpu.issue(multiply)
