"""What a step is held against: its matrix products alone through OpenBLAS, and the rate of the machine's fma units."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from .networks import Network


def products(network: Network) -> Callable[[], None]:
    """Z = X W and dW = X^T dZ for each layer, dX = dZ W^T for each but the first, into arrays that are there."""
    n, dtype = network.batch, network.dtype
    a, weights = [network.data()[0]], network.weights()
    rng = np.random.default_rng(4)
    a += [rng.standard_normal((n, o), dtype) for o in network.layers[1:]]
    delta = [rng.standard_normal((n, o), dtype) for o in network.layers[1:]]
    z, dX = [np.empty_like(d) for d in delta], [np.empty_like(x) for x in a[:-1]]
    dW = [np.empty_like(W) for W in weights]

    def step() -> None:
        for l, W in enumerate(weights):
            np.matmul(a[l], W, out=z[l])
        for l in range(len(weights) - 1, -1, -1):
            if l > 0:
                np.matmul(delta[l], weights[l].T, out=dX[l])
            np.matmul(a[l].T, delta[l], out=dW[l])

    return step


def forward_products(network: Network) -> Callable[[], None]:
    """Z = X W for each layer, into arrays that are there."""
    X, weights = network.data()[0], network.weights()
    rng = np.random.default_rng(4)
    a = [X, *(rng.standard_normal((network.batch, o), network.dtype) for o in network.layers[1:-1])]
    z = [np.empty((network.batch, o), network.dtype) for o in network.layers[1:]]

    def forward() -> None:
        for x, W, out in zip(a, weights, z, strict=True):
            np.matmul(x, W, out=out)

    return forward


def fma_units(dtype: str, threads: int) -> tuple[Callable[[], None], float]:
    """(call, its operations): fma on registers alone, on every thread."""
    import numba

    from bpgpu.kernels.machine import lanes
    from bpgpu.kernels.vector import fma, load, store

    V: Any = lanes(dtype)
    size = V.lanes * V.itemsize

    @numba.njit(nogil=True)  # type: ignore[untyped-decorator]
    def spin(count: int, address: int) -> None:
        x, y = load(V, address), load(V, address + size)
        # 12 sums hide the latency of two units; they start differently, or the compiler would make one of them
        a, b, c = load(V, address + 2 * size), load(V, address + 3 * size), load(V, address + 4 * size)
        d, e, f = load(V, address + 5 * size), load(V, address + 6 * size), load(V, address + 7 * size)
        g, h, i = load(V, address + 8 * size), load(V, address + 9 * size), load(V, address + 10 * size)
        j, k, l = load(V, address + 11 * size), load(V, address + 12 * size), load(V, address + 13 * size)
        for _ in range(count):
            a, b, c, d = fma(a, x, y), fma(b, x, y), fma(c, x, y), fma(d, x, y)
            e, f, g, h = fma(e, x, y), fma(f, x, y), fma(g, x, y), fma(h, x, y)
            i, j, k, l = fma(i, x, y), fma(j, x, y), fma(k, x, y), fma(l, x, y)
        store(address + 2 * size, a + b + c + d + e + f + g + h + i + j + k + l)

    count, pool = 5_000_000, ThreadPoolExecutor(threads)
    numbers = [np.random.default_rng(5).uniform(0.5, 0.9, 14 * V.lanes).astype(dtype) for _ in range(threads)]
    addresses = [array.ctypes.data for array in numbers]
    spin(1, addresses[0])

    def call() -> None:
        list(pool.map(spin, [count] * threads, addresses))

    return call, 2.0 * 12 * V.lanes * count * threads
