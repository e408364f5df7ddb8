"""What several test files share: numbers at random that are the same in every run, and CPU backends of 1, 2 and 3 threads.

pytest runs in two processes, but for what is printed (-s): most of the time goes to compilers, which use one thread each.
"""

from __future__ import annotations

import signal
import zlib
from functools import cache
from typing import Any

import numpy as np
import pytest
from hypothesis import settings

from bpgpu import cuda, gpu, health
from bpgpu.backend import Backend
from bpgpu.cpu import CPUBackend
from bpgpu.devices import get_backend
from bpgpu.kernels.names import HYPER

settings.register_profile("busy", deadline=None)  # a machine with other work is no fault
settings.load_profile("busy")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--require-gpu", action="store_true", help="tests that find no GPU fail, instead of being skipped")


def pytest_configure() -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as under nohup: the tests of Ctrl-C want it to be heard
        signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    return 0 if config.getoption("capture") == "no" else 2


CUDA = ["emulated", pytest.param("gpu", marks=pytest.mark.gpu)]


@pytest.fixture(params=CUDA)
def exact_cuda(request: pytest.FixtureRequest) -> cuda.CUDABackend:
    """The CUDA backend: on the emulator, and on the GPU if there is one."""
    return cuda_backend(request)


@pytest.fixture(params=["cpu", "three threads", "numpy", *CUDA])
def any_backend(request: pytest.FixtureRequest) -> Backend:
    if request.param in ("cpu", "three threads"):
        return cpu_backend(1 if request.param == "cpu" else 3)
    return get_backend("numpy") if request.param == "numpy" else cuda_backend(request)


def cuda_backend(request: pytest.FixtureRequest) -> cuda.CUDABackend:
    """On the device of the fixture's parameter; skips where it is missing."""
    from tests.emulator import available
    from tests.emulator.gpu import GPU

    missing = available() if request.param == "emulated" else gpu.why_not()
    if missing is not None:
        if request.param == "gpu" and request.config.getoption("--require-gpu"):
            pytest.fail(f"no GPU here: {missing}")
        pytest.skip(f"no {request.param} device here: {missing}")
    if request.param == "emulated":
        return cuda.CUDABackend(GPU())
    backend = get_backend("cuda")
    assert isinstance(backend, cuda.CUDABackend)
    return backend


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Seeded with the name of the test (and its parameters), so that each test has numbers of its own."""
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))


@pytest.fixture
def every_epoch_looked_at(monkeypatch: pytest.MonkeyPatch) -> None:
    """The health of a network, however much of the training that costs."""
    monkeypatch.setattr(health, "SHARE", 1e-9)


@cache
def cpu_backend(threads: int) -> CPUBackend:
    return CPUBackend(threads=threads)


@pytest.fixture(params=[1, 2, 3], ids=lambda n: f"{n}-threads")
def cpu(request: pytest.FixtureRequest) -> Backend:
    return cpu_backend(request.param)


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> np.dtype:
    return np.dtype(request.param)


def hyper(dtype: Any, **numbers: float) -> np.ndarray:
    """The numbers of an update by their names: 0 unless given, gain1 1."""
    return np.array([{"gain1": 1.0, **numbers}.get(name, 0.0) for name in HYPER], dtype)
