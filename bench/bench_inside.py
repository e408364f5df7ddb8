"""What it costs to see inside: a clipped step and per-example norms against a plain step, and tracing one example.

python -m pytest bench/bench_inside.py --benchmark-enable
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from pytest_benchmark.fixture import BenchmarkFixture

import bpgpu

from .networks import NETWORKS

ACTIONS: dict[str, Callable[..., Any]] = {
    "step": lambda net, X, y, sgd: net.train_step(X, y, sgd),
    "clipped step": lambda net, X, y, sgd: net.train_step(X, y, sgd, clip_per_example=1.0),
    "both passes": lambda net, X, y, sgd: net.backward(net.forward(X), y),
    "per-example norms": lambda net, X, y, sgd: net.per_example_norms(X, y),
    "trace of one": lambda net, X, y, sgd: net.trace(X[0], y[0]),
}


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("name", NETWORKS)
def test_inside(name: str, action: str, benchmark: BenchmarkFixture) -> None:
    network = NETWORKS[name]
    X, y = network.data()
    net, sgd = bpgpu.MLP(network.layers, activation=network.activation, dtype=network.dtype), bpgpu.SGD(1e-6)
    benchmark(ACTIONS[action], net, X, y, sgd)
    assert np.isfinite(net.evaluate(X, y)[0])
