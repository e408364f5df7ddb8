"""A recorded step as one launch: bit for bit the CPU's, whatever the order in which threads and blocks run between barriers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import bpgpu
from bpgpu import grid
from bpgpu.cpu import CPUBackend
from bpgpu.cuda import CUDABackend
from bpgpu.epochs import Epochs
from bpgpu.grid import GridBackend
from bpgpu.tiles import TILES_OF_GRID, Tile
from tests.emulator.gpu import GPU
from tests.test_cuda import OPTIMIZERS, host

CPU = CPUBackend(threads=1)
ORDERS = "ascending", "descending", "random"
NewBackend = Callable[..., GridBackend]


@pytest.fixture
def new_backend(exact_cuda: CUDABackend, request: pytest.FixtureRequest) -> NewBackend:
    """Makes backends on the device of the test; `tile` and `split` are forced on their products."""

    def new(order: str = "random", tile: Tile | None = None, split: int = 1) -> GridBackend:
        found = GridBackend(GPU(order=order) if isinstance(exact_cuda.device, GPU) else exact_cuda.device)
        if tile is not None:
            found.plan = lambda dtype, rows, cols, K: (tile, min(split, -(-K // 256)))  # type: ignore[method-assign]
        return found

    return new


def trained(backend: Any, layers: list[int], n: int, fit: dict[str, Any], **options: Any) -> tuple[bytes, ...]:
    """Everything that a run leaves, as bytes."""
    rng = np.random.default_rng(sum(layers) + n)
    X, y = rng.standard_normal((n, layers[0])), rng.integers(0, layers[-1], n)
    net = bpgpu.MLP(layers, backend=backend, seed=5, **options)
    history = net.fit(X, y, **{"epochs": 2, "batch_size": 16, "optimizer": bpgpu.SGD(0.1, 0.9), **fit})
    loss = net.train_step(X[:7], y[:7], bpgpu.Adam(0.01))
    numbers = np.array([*history.loss, loss, *net.evaluate(X, y)])
    return host(net.theta).tobytes(), numbers.tobytes(), host(net.outputs(X)).tobytes()


def compare(backend: GridBackend, layers: list[int], n: int, **options: Any) -> None:
    fit = options.pop("fit", {})
    assert trained(backend, layers, n, fit, **options) == trained(CPU, layers, n, fit, **options)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("order", ORDERS)
def test_a_whole_run(new_backend: NewBackend, order: str, dtype: str) -> None:
    """fit with a smaller batch at the end, train_step, evaluate, outputs; layers of several tiles, sums of several chunks."""
    compare(new_backend(order), [300, 70, 33, 5], 43, dtype=dtype)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_optimizers(new_backend: NewBackend, name: str) -> None:
    compare(new_backend(), [6, 20, 3], 40, fit={"optimizer": OPTIMIZERS[name]()})


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_all_that_may_be_asked_for(new_backend: NewBackend, dtype: str) -> None:
    adam = bpgpu.AdamW(0.01, clip_norm=0.5, max_norm=1.0, l1=1e-4, layer_rates=[1, 0.5, 0.2])
    fit = {"batch_size": 300, "micro_batch": 256, "optimizer": adam, "clip_per_example": 0.4}
    options = {"activation": ["gelu", "silu"], "dropout": [0.1, 0.2, 0.3], "dtype": dtype}
    compare(new_backend(), [20, 33, 17, 3], 310, fit=fit, **options)


@pytest.mark.parametrize("split", [1, 3])
@pytest.mark.parametrize("tile", TILES_OF_GRID["float32"], ids=lambda t: f"{t.BM}x{t.BN}")
def test_tiles_and_cuts(new_backend: NewBackend, tile: Tile, split: int) -> None:
    """Products of one stage that are all cut over several blocks, as the gradients of a batch of 600 are."""
    for layers, n, batch in (
        ([600, 9, 4], 40, 33),
        ([33, 65, 70, 10], 620, 600),
        ([1, 1, 2], 5, 1),
        ([36, 132, 64, 12], 70, 68),
    ):
        compare(new_backend(tile=tile, split=split), layers, n, fit={"batch_size": batch})


def test_more_layers_than_shared_memory_holds(new_backend: NewBackend) -> None:
    compare(new_backend(), [5, *[8] * 14, 3], 20, activation="tanh")


@pytest.mark.parametrize(("most", "launches"), [(1024, 1), (3, 4), (1, 10)])
def test_a_run_is_one_launch(new_backend: NewBackend, monkeypatch: pytest.MonkeyPatch, most: int, launches: int) -> None:
    """For as many steps as a launch may have."""
    b, launched = new_backend(), []
    launch = b.device.launch
    monkeypatch.setattr(grid, "MOST_STEPS", most)
    monkeypatch.setattr(b.device, "launch", lambda *a, **how: (launched.append(how["cooperative"]), launch(*a, **how)))
    source, order = b.asarray(np.arange(60, dtype=np.float32)), b.asarray(np.arange(60)[::-1].copy())
    target, totals = b.empty((5,), np.float32), b.asarray(np.zeros(12, np.float32))
    with b.capture() as program:
        b.gather(source, order, target)
        b.total(target, totals)
    program.run(1, 10)
    expected = np.arange(60, dtype=np.float32)[::-1].reshape(12, 5).sum(1)
    expected[[0, 11]] = 0
    assert (host(totals) == expected).all() and launched == [True] * launches


def test_an_empty_program(new_backend: NewBackend) -> None:
    backend = new_backend()
    with backend.capture() as program, backend.together():
        pass
    program.run(0, 3)


def test_one_dtype_a_program(new_backend: NewBackend) -> None:
    """Bytes go with either, or alone; both dtypes in one launch are refused before anything is run."""
    b = new_backend()
    singles, doubles = b.asarray(np.ones(5, np.float32)), b.asarray(np.ones(5))

    def record() -> None:
        with b.capture():
            b.total(singles, b.empty((1,), np.float32))
            b.total(doubles, b.empty((1,), np.float64))

    with pytest.raises(ValueError, match="float32 and float64 in one program"):
        record()
    target = b.empty((2,), np.int64)
    with b.capture() as program:
        b.gather(b.asarray(np.arange(9)), b.asarray(np.array([7, 3])), target)
    program.run()
    assert host(target).tolist() == [7, 3]


def test_room_for_what_the_graphs_have_room_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of chunks have memory of their own where several products are computed at once, unless there is too little."""
    X, y, sgd = np.zeros((3000, 256), np.float32), np.zeros(3000, np.int64), bpgpu.SGD(0.1)
    monkeypatch.setattr(CUDABackend, "function", lambda self, kernel: None)  # nothing is run
    monkeypatch.setattr(GridBackend, "team", lambda self, kernels: (None, 1))

    def recorded(kind: type[CUDABackend], limit: int) -> bool:
        device = GPU(limit=limit)
        device.multiprocessors = 132
        net = bpgpu.MLP([256] * 9, backend=kind(device))
        try:
            Epochs(net.trainer(sgd), X, y, None, len(X)).begin(sgd, np.arange(len(X)))
        except MemoryError:
            return False
        return True

    fits = [(recorded(CUDABackend, limit), recorded(GridBackend, limit)) for limit in range(60_000_000, 90_000_000, 2_000_000)]
    assert all(graphs == grid for graphs, grid in fits) and {graphs for graphs, _ in fits} == {True, False}


def test_operations_outside_of_a_program(new_backend: NewBackend) -> None:
    """Each is a launch of its own, as in CUDABackend."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((40, 300)), rng.integers(0, 3, 40)
    found = []
    for backend in (CPU, new_backend()):
        net = bpgpu.MLP([300, 20, 3], backend=backend, seed=1)
        back = net.backward(net.forward(X), y)
        found.append([host(array).tobytes() for array in (*back.delta, *back.dW, *back.db)])
    assert found[0] == found[1]
