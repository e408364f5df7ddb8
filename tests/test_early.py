"""Overlapping launches without a GPU: what the driver would be given, by its own header; what kernels begin with."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bpgpu
from bpgpu import early, gpu
from bpgpu.cpu import CPUBackend
from bpgpu.cuda import CUDABackend
from bpgpu.early import EarlyDevice, launch_early
from bpgpu.kernels import cuda_source, records
from bpgpu.launching import new_record
from bpgpu.tiles import TILES
from tests.emulator import available

STAND_IN = """
#include <cstdio>
#include <cuda.h>
static char said[1000];
extern "C" CUresult CUDAAPI cuLaunchKernelEx(const CUlaunchConfig* c, CUfunction f, void** parameters, void** extra) {
    if (c->gridDimX == 0) return CUDA_ERROR_INVALID_VALUE;
    const CUlaunchAttribute& a = c->attrs[0];
    snprintf(said, sizeof said, "[%u, %u, %u, %u, %u, %u, %u, %llu, %u, %d, %d, %llu, %lld, %lld, %d]",
        c->gridDimX, c->gridDimY, c->gridDimZ, c->blockDimX, c->blockDimY, c->blockDimZ, c->sharedMemBytes,
        (unsigned long long)c->hStream, c->numAttrs, a.id == CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION,
        a.value.programmaticStreamSerializationAllowed, (unsigned long long)f, ((long long**)parameters)[0][0],
        ((long long**)parameters)[1][1], extra == nullptr);
    return CUDA_SUCCESS;
}
extern "C" CUresult CUDAAPI cuGetErrorName(CUresult error, const char** name) {
    *name = "CUDA_ERROR_INVALID_VALUE";
    return CUDA_SUCCESS;
}
extern "C" const char* what_was_said() { return said; }
"""


def headers() -> Path | None:
    """Where the wheels of the extras have NVIDIA's cuda.h."""
    found = importlib.util.find_spec("nvidia")
    places = [] if found is None else list(found.submodule_search_locations or [])
    return next((header.parent for place in places for header in sorted(Path(place).glob("*/include/cuda.h"))), None)


@pytest.fixture
def driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], Any]:
    """A driver that keeps what it is told to launch, compiled against NVIDIA's header."""
    if (folder := headers()) is None:
        pytest.skip("the wheel nvidia-cuda-runtime is not installed")
    if (reason := available()) is not None:
        pytest.skip(f"no compiler here: {reason}")
    command = ["g++", "-shared", "-fPIC", f"-I{folder}", "-o", str(tmp_path / "driver.so"), "-x", "c++", "-"]
    subprocess.run(command, input=STAND_IN, text=True, check=True)
    library = ctypes.CDLL(str(tmp_path / "driver.so"))
    library.what_was_said.restype = ctypes.c_char_p
    monkeypatch.setattr(early, "_driver", lambda: library)
    return lambda: json.loads(library.what_was_said())


def test_the_driver_is_told_the_launch(driver: Callable[[], Any]) -> None:
    arguments = new_record(records.STEP, step=1234567890123), new_record(records.SPLIT, arrived=-5)
    launch_early(2**40 + 1, (7, 2, 1), (256, 1, 1), arguments, 2**41 + 3)
    assert driver() == [7, 2, 1, 256, 1, 1, 0, 2**41 + 3, 1, 1, 1, 2**40 + 1, 1234567890123, -5, 1]


def test_what_the_driver_refuses(driver: Callable[[], Any]) -> None:
    with pytest.raises(RuntimeError, match=r"does not launch a kernel of \(32, 1, 1\) threads: CUDA_ERROR_INVALID_VALUE"):
        launch_early(1, (0, 1, 1), (32, 1, 1), [new_record(records.STEP)] * 2, 0)


def kernels() -> list[cuda_source.Kernel]:
    """One of each operation."""
    options = {
        "dense_forward": ("gelu",), "hidden_delta": ("relu",), "dense_gradient": ("adam",), "column_sum": ("sgd",),
        "update": ("adam",), "activate": ("tanh",), "amplify": ("silu",),
        "output_delta": ("cross_entropy", "softmax", "labels"),
    }  # fmt: skip
    products = (*TILES["float32"][-1].macros.items(), ("ALIGNED", 1))
    return [
        cuda_source.Kernel(
            name, None if name in ("gather", "advance") else "float32", options.get(name, ()),
            products if name in ("dense_forward", "hidden_delta", "dense_gradient") else (("THREADS", 128),),
        )
        for name in cuda_source.RECORDS
    ]  # fmt: skip


@pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")
@pytest.mark.parametrize("kernel", kernels(), ids=lambda kernel: kernel.name)
def test_every_kernel_waits_before_it_touches_memory(kernel: cuda_source.Kernel) -> None:
    ptx = gpu.machine_code(cuda_source.source(kernel), "compute_90").decode()
    body = ptx[ptx.index(f".entry {kernel.entry}") :]
    waits = body.index("griddepcontrol.wait")
    assert body.index("griddepcontrol.launch_dependents") < waits
    touches = [
        body.find(word) for word in ("ld.global", "st.global", "ld.shared", "st.shared", "cp.async", "atom.", "bra", "ret")
    ]
    assert waits < min(place for place in touches if place >= 0)
    assert "griddepcontrol" not in gpu.machine_code(cuda_source.source(kernel), "compute_80").decode()


@pytest.mark.parametrize("exact_cuda", [pytest.param("gpu", marks=pytest.mark.gpu)], indirect=True)
def test_the_bits_are_the_same(exact_cuda: CUDABackend) -> None:
    """On a real GPU alone: the emulated one does not launch through the driver."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((400, 300)), rng.integers(0, 5, 400)
    thetas = []
    for backend in (CPUBackend(), CUDABackend(EarlyDevice(exact_cuda.device.index))):
        net = bpgpu.MLP([300, 700, 33, 5], backend=backend, seed=5)
        net.fit(X, y, epochs=8, batch_size=32, optimizer=bpgpu.Adam(0.001))
        net.train_step(X[:7], y[:7], bpgpu.SGD(0.1))
        thetas.append(np.array(net.backend.to_numpy(net.theta)).tobytes())
    assert thetas[0] == thetas[1]
