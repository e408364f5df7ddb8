"""Launches that begin while the one before them still runs: programmatic dependent launch, of GPUs since Hopper.

A kernel's blocks come to the multiprocessors as soon as those of the kernel before have all begun, and wait there, in their
first instruction (kernels/cuda_source.py), until it has ended and what it wrote can be seen.  So only the launches overlap, and
nothing else changes.  CuPy has no such launches; this calls the driver.

    MLP(layers, backend=CUDABackend(EarlyDevice()))

It has not been timed on a GPU, so get_backend does not give it; bench.gpu compares both.  In a graph it needs a driver for CUDA
12.3 or newer.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from functools import cache
from typing import Any

from .cuda import Dimensions
from .gpu import CuPyDevice
from .launching import Record

_SERIALIZATION = 6  # CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION


class _Attribute(ctypes.Structure):  # CUlaunchAttribute: an int at 0, and at 8 a union of 64 bytes
    _fields_ = (("id", ctypes.c_int), ("unused", ctypes.c_int), ("value", ctypes.c_int), ("rest", ctypes.c_int * 15))


class _Config(ctypes.Structure):  # CUlaunchConfig
    _fields_ = (
        ("grid", ctypes.c_uint * 3), ("block", ctypes.c_uint * 3), ("shared_bytes", ctypes.c_uint),
        ("stream", ctypes.c_void_p), ("attributes", ctypes.POINTER(_Attribute)), ("count", ctypes.c_uint),
    )  # fmt: skip


@cache
def _driver() -> Any:
    return ctypes.CDLL("nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1")


def launch_early(function: int, grid: Dimensions, block: Dimensions, arguments: Sequence[Record], stream: int) -> None:
    """cuLaunchKernelEx of a CUfunction on a CUstream.  RuntimeError: what the driver says."""
    attribute = _Attribute(id=_SERIALIZATION, value=1)
    config = _Config((ctypes.c_uint * 3)(*grid), (ctypes.c_uint * 3)(*block), 0, stream, ctypes.pointer(attribute), 1)
    pointers = (ctypes.c_void_p * len(arguments))(*(record.ctypes.data for record in arguments))
    if error := _driver().cuLaunchKernelEx(ctypes.byref(config), ctypes.c_void_p(function), pointers, None):
        name = ctypes.c_char_p()
        _driver().cuGetErrorName(error, ctypes.byref(name))
        raise RuntimeError(f"the driver does not launch a kernel of {block} threads: {(name.value or b'?').decode()}")


class EarlyDevice(CuPyDevice):
    def launch(
        self, function: Any, grid: Dimensions, block: Dimensions, arguments: Sequence[Record], *, cooperative: bool = False
    ) -> None:
        if cooperative:
            super().launch(function, grid, block, arguments, cooperative=True)
            return
        with self.here() as cupy:
            launch_early(function.ptr, grid, block, arguments, cupy.cuda.get_current_stream().ptr)
