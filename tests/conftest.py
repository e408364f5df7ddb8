"""What several test files share: numbers at random that are the same in every run, and CPU backends of 1, 2 and 3 threads."""

from __future__ import annotations

import zlib
from functools import cache

import numpy as np
import pytest

from bpgpu.backend import Backend
from bpgpu.cpu import CPUBackend


@pytest.fixture
def rng(request: pytest.FixtureRequest) -> np.random.Generator:
    """Seeded with the name of the test (and its parameters), so that each test has numbers of its own."""
    return np.random.default_rng(zlib.crc32(request.node.name.encode()))


@cache
def cpu_backend(threads: int) -> CPUBackend:
    return CPUBackend(threads=threads)


@pytest.fixture(params=[1, 2, 3], ids=lambda n: f"{n}-threads")
def cpu(request: pytest.FixtureRequest) -> Backend:
    return cpu_backend(request.param)


@pytest.fixture(params=["float32", "float64"])
def dtype(request: pytest.FixtureRequest) -> np.dtype:
    return np.dtype(request.param)
