"""The whole CUDA backend, its own launch code and its own kernels, bit for bit against the CPU backend.

Every test runs on the emulator (tests/emulator), where the kernels are compiled by g++ and every CUDA thread is a fiber, and
on the GPU if there is one.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bpgpu
from bpgpu import epochs
from bpgpu.cpu import CPUBackend
from bpgpu.cuda import CUDABackend
from bpgpu.tiles import TILES, Tile, plan
from tests.emulator.gpu import GPU

CPU = CPUBackend(threads=1)
ORDERS = "ascending", "descending", "random"
_backends: dict[Any, CUDABackend] = {}


@pytest.fixture(autouse=True)
def on(exact_cuda: CUDABackend) -> None:
    """The device of the test."""
    _backends["device"] = exact_cuda


def backend(order: str = "ascending", tile: Tile | None = None, split: int = 1) -> CUDABackend:
    """The CUDA backend, kept for the length of the tests; `tile` and `split` are forced on its products."""
    device = _backends["device"].device
    key = type(device), order, tile, split
    if key not in _backends:
        found = CUDABackend(GPU(order=order) if isinstance(device, GPU) else device)
        if tile is not None:
            found.plan = lambda dtype, rows, cols, K: (tile, min(split, -(-K // 256)))  # type: ignore[method-assign]
        _backends[key] = found
    return _backends[key]


def host(array: Any) -> np.ndarray:
    return array.get() if hasattr(array, "get") else np.asarray(array)


def same(a: Any, b: Any) -> bool:
    """The same bits, but any NaN is as good as another."""
    a, b = host(a), host(b)
    integer = {4: np.int32, 8: np.int64}[a.itemsize]
    equal = a.view(integer) == b.view(integer)
    return a.dtype == b.dtype and a.shape == b.shape and bool((equal | (np.isnan(a) & np.isnan(b))).all())


def compare(gpu: CUDABackend, layers: list[int], n: int, *, steps: int = 0, y: Any = None, **options: Any) -> None:
    """Both passes, the gradient, then training steps on either side."""
    rng = np.random.default_rng(sum(layers) + n)
    here, there = (bpgpu.MLP(layers, backend=b, seed=3, **options) for b in (CPU, gpu))
    assert same(here.theta, there.theta)
    X = rng.standard_normal((n, layers[0]))
    y = rng.integers(0, layers[-1], n) if y is None else y(rng, n, layers[-1])
    passes, other = here.forward(X), there.forward(X)
    back, back_other = here.backward(passes, y), there.backward(other, y)
    for l in range(len(layers) - 1):
        assert same(passes.z(l), other.z(l)), f"z of layer {l}"
        assert same(passes.a[l + 1], other.a[l + 1]), f"a of layer {l}"
        assert same(back.delta[l], back_other.delta[l]), f"delta of layer {l}"
        assert same(back.dW[l], back_other.dW[l]) and same(back.db[l], back_other.db[l]), f"gradient of layer {l}"
    assert back.loss == back_other.loss
    if steps:
        sgd = [bpgpu.SGD(0.05, 0.9, nesterov=True, weight_decay=1e-3) for _ in range(2)]
        losses = [[net.train_step(X, y, s) for _ in range(steps)] for net, s in zip((here, there), sgd, strict=True)]
        assert losses[0] == losses[1]
        assert same(here.theta, there.theta)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", bpgpu.ACTIVATIONS)
def test_activations(activation: str, dtype: str) -> None:
    compare(backend(), [5, 19, 7, 3], 9, activation=activation, dtype=dtype, steps=2)


def rows(rng: np.random.Generator, n: int, o: int) -> np.ndarray:
    return rng.random((n, o))


def probabilities(rng: np.random.Generator, n: int, o: int) -> np.ndarray:
    return np.asarray(rng.dirichlet(np.ones(o), n))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    ("loss", "output", "y"),
    [
        ("cross_entropy", None, probabilities),
        ("binary_cross_entropy", None, rows),
        ("squared_error", "identity", rows),
        ("squared_error", "sigmoid", rows),
        ("squared_error", "gelu", rows),
        ("absolute_error", "tanh", rows),
        ("huber", "softplus", rows),
        ("huber", "silu", rows),
    ],
)
def test_losses(loss: str, output: str | None, y: Any, dtype: str) -> None:
    compare(backend(), [4, 6, 5], 11, loss=loss, output_activation=output, y=y, activation="tanh", dtype=dtype, steps=2)


PAIRS = [(loss, output) for loss in ("squared_error", "absolute_error", "huber") for output in bpgpu.ACTIVATIONS]


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("start", [0, 1, 2])
def test_some_outputs_of_every_loss(start: int, dtype: str) -> None:
    for loss, output in PAIRS[start + 3 * (dtype == "float64") :: 6]:
        compare(backend(), [4, 6, 5], 11, loss=loss, output_activation=output, y=rows, activation=output, dtype=dtype)


@pytest.mark.exhaustive
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_every_output_of_every_loss(dtype: str) -> None:
    for loss, output in PAIRS:
        compare(backend(), [4, 6, 5], 11, loss=loss, output_activation=output, y=rows, activation=output, dtype=dtype, steps=2)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reduction(reduction: str) -> None:
    compare(backend(), [4, 6, 3], 5, reduction=reduction, steps=1)


@pytest.mark.parametrize(
    ("layers", "n"),
    [
        ([1, 1, 2], 1),
        ([5, 7, 3], 1),
        ([33, 65, 70, 10], 67),
        ([300, 5, 2], 3),
        ([600, 9, 4], 33),
        ([8, 4, 300], 6),
        ([3, 5, 2], 300),
        ([36, 132, 64, 12], 68),
        ([4, 3, 2], 1100),
    ],
)
@pytest.mark.parametrize("tile", TILES["float32"], ids=lambda t: f"{t.BM}x{t.BN}")
@pytest.mark.parametrize("split", [1, 2, 9])
def test_shapes(layers: list[int], n: int, tile: Tile, split: int) -> None:
    """Edges of tiles, sums over one chunk, two and three, their chunks in one block and in several."""
    compare(backend(tile=tile, split=split), layers, n, steps=1)


@pytest.mark.parametrize("order", ["ascending", "random"])
@pytest.mark.parametrize("tile", TILES["float64"], ids=lambda t: f"{t.BM}x{t.BN}")
@pytest.mark.parametrize("split", [1, 3])
def test_shapes_in_float64(tile: Tile, split: int, order: str) -> None:
    shapes = [
        ([33, 65, 70, 10], 67), ([600, 9, 4], 33), ([300, 5, 2], 3), ([3, 5, 2], 300), ([36, 132, 64, 12], 68),
        ([4, 3, 2], 1100),
    ]  # fmt: skip
    for layers, n in shapes:
        compare(backend(order, tile, split), layers, n, steps=1, dtype="float64")


@pytest.mark.parametrize("columns", [255, 257, 700])
@pytest.mark.parametrize("loss", ["labels", "probabilities", "squared_error"])
def test_wide_outputs(loss: str, columns: int) -> None:
    """Rows of one chunk, two and three, with one warp and with many."""
    rng = np.random.default_rng(columns)
    Z = (rng.standard_normal((3, columns)) * 4).astype(np.float32)
    Z[1, 0], Z[2, 5] = np.nan, np.inf
    y = rng.integers(0, columns, 3) if loss == "labels" else rng.random((3, columns), dtype=np.float32)
    options = ("squared_error", "tanh") if loss == "squared_error" else ("cross_entropy", "softmax")
    here, there = (b.output_delta(b.asarray(Z), b.asarray(y), *options) for b in (CPU, backend()))
    assert same(here[0], there[0]) and same(here[1], there[1])
    assert same(*(b.activate(b.asarray(Z), "softmax") for b in (CPU, backend())))


@pytest.mark.parametrize("shift", range(4))
def test_arrays_of_any_alignment(shift: int) -> None:
    """Views that begin anywhere: 16-byte copies and writes where they fit, single numbers elsewhere."""
    results = []
    for b in (CPU, backend()):
        rng = np.random.default_rng(shift)

        def view(*shape: int, b: Any = b, rng: Any = rng) -> Any:
            size = int(np.prod(shape))
            room = b.empty((size + 8,), np.float32)
            start = -b.address(room) // 4 % 4 + shift
            array = room[start : start + size].reshape(shape)
            b.write(array, rng.standard_normal(shape).astype(np.float32))
            return array

        X, W, bias, dZ, saved = view(20, 24), view(24, 36), view(36), view(20, 36), view(20, 24)
        A, below, dW, db, states = view(20, 36), view(20, 24), view(24, 36), view(36), (view(24, 36), view(36))
        hyper = b.asarray(np.array([[0.1, 0.01, 0.02, 0.03, 0.9, 0.1, 0.8, 0.2, 0.1]] * 2, np.float32))
        b.dense_forward(X, W, bias, "tanh", A=A)
        b.hidden_delta(dZ, W, saved, "sigmoid", dZ_below=below)
        b.dense_gradient(X, dZ, dW=dW, db=db)
        b.dense_update(X, dZ, W, bias, "nesterov", hyper, [states])
        b.update(W.reshape(-1), dW.reshape(-1), "momentum", hyper[0], [states[0].reshape(-1)])
        results.append([host(array).copy() for array in (A, below, dW, db, W, bias, *states)])
    assert all(same(here, there) for here, there in zip(*results, strict=True))


def test_a_plan_is_whole_and_fills_the_gpu() -> None:
    for dtype, found in TILES.items():
        for rows, cols, K in [
            (1, 1, 1),
            (32, 1024, 4096),
            (128, 10, 1024),
            (8192, 4096, 4096),
            (784, 1024, 128),
            (50, 3, 100_000),
        ]:
            tile, split = plan(dtype, rows, cols, K, 132)
            chunks = -(-K // 256)
            assert tile in found and 1 <= split <= chunks
            assert -(-chunks // -(-chunks // split)) == split, "a block without a chunk"
    assert plan("float32", 8192, 4096, 4096, 132) == (TILES["float32"][0], 1)
    tile, split = plan("float32", 32, 1024, 4096, 132)
    assert -(-32 // tile.BM) * -(-1024 // tile.BN) * split >= 100


@pytest.mark.parametrize("order", ORDERS)
def test_bits_do_not_depend_on_the_order_of_threads(order: str) -> None:
    """A race would show: the threads of a block and the blocks of a grid run in this order between barriers."""
    compare(backend(order), [40, 70, 30, 12], 37, activation="gelu", steps=2)
    for tile in TILES["float32"]:
        compare(backend(order, tile, split=3), [600, 9, 4], 33, steps=2)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("order", ["descending", "random"])
def test_runs_with_all_that_may_be_asked_for(order: str, dtype: str) -> None:
    """Dropout, parts of batches, bounds of gradients, of single examples' and of weights, penalties, rates by layer."""
    rng = np.random.default_rng(0)
    X, y, weight = rng.standard_normal((420, 20)), rng.integers(0, 3, 420), rng.random(420)
    ends = []
    for b in (CPU, backend(order)):
        net = bpgpu.MLP([20, 33, 17, 3], activation=["gelu", "silu"], backend=b, seed=3, dtype=dtype, dropout=[0.1, 0.2, 0.3])
        adam = bpgpu.AdamW(0.01, clip_norm=0.5, max_norm=1.0, l1=1e-4, layer_rates=[1, 0.5, 0.2])
        history = net.fit(
            X, y, epochs=2, batch_size=400, micro_batch=256, optimizer=adam, sample_weight=weight, clip_per_example=0.4
        )
        norms = net.per_example_norms(X[:50], y[:50])
        ends.append((host(net.theta).tobytes(), history.loss, host(norms.total).tobytes()))
    assert ends[0] == ends[1]


OPTIMIZERS: dict[str, Callable[[], bpgpu.Optimizer]] = {
    "sgd": lambda: bpgpu.SGD(0.1),
    "momentum": lambda: bpgpu.SGD(0.1, 0.9, l1=0.01),
    "scheduled": lambda: bpgpu.SGD(lambda t: 0.1 / (t + 1), 0.9, nesterov=True, rate_in_velocity=True),
    "adam": lambda: bpgpu.Adam(0.01, weight_decay=0.01),
    "adamw": lambda: bpgpu.AdamW(0.01, layer_rates=[1, 0.5], epsilon_hat=True),
    "rmsprop": lambda: bpgpu.RMSprop(0.01, average_penalties=True, weight_decay=0.1),
    "adagrad": lambda: bpgpu.Adagrad(0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_whole_run(name: str) -> None:
    """fit: shuffles, gathered batches with a smaller one at the end, weights, recorded programs, validation, prediction."""
    rng = np.random.default_rng(0)
    X, weight = rng.standard_normal((70, 6)), rng.random(70)
    y = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)
    results = []
    for b in (CPU, backend()):
        net = bpgpu.MLP([6, 20, 3], backend=b, seed=5)
        history = net.fit(
            X, y, epochs=3, batch_size=16, optimizer=OPTIMIZERS[name](), validation_data=(X, y), sample_weight=weight
        )
        results.append((host(net.theta), history, net.predict(X), net.predict_proba(X), net.evaluate(X, y)))
    (theta, history, labels, proba, score), (theta_2, history_2, labels_2, proba_2, score_2) = results
    assert same(theta, theta_2) and same(proba, proba_2) and (labels == labels_2).all() and score == score_2
    assert history.loss == history_2.loss and history.validation_loss == history_2.validation_loss


@pytest.mark.parametrize("on_the_device", [True, False])
def test_data_that_are_there_and_data_that_stream(on_the_device: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrays on the device are used in place; more than it has room for comes from page-locked memory while it computes."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((1000, 64), np.float32)
    y = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)
    b, resident = backend(), set()
    fill = epochs.Epochs._fill
    monkeypatch.setattr(epochs.Epochs, "_fill", lambda self, k: (resident.add(self.resident), fill(self, k)))
    monkeypatch.setattr(epochs, "SLAB_BYTES", 3 * 16 * X[0].nbytes)
    if not on_the_device:
        monkeypatch.setattr(CUDABackend, "free_bytes", lambda self: X.nbytes // 2 + 200_000)
    ends = []
    for device, here in ((CPU, lambda a: a), (b, b.asarray if on_the_device else lambda a: a)):
        net = bpgpu.MLP([64, 10, 3], backend=device, seed=5)
        net.fit(here(X), here(y), epochs=3, batch_size=16, optimizer=bpgpu.SGD(0.1, 0.9))
        labels = net.predict(here(X))
        assert isinstance(labels, type(here(X)))
        ends.append((host(net.theta).tobytes(), host(labels).tobytes()))
    assert ends[0] == ends[1] and resident == (set() if on_the_device else {False})


def test_two_python_threads_on_one_device() -> None:
    """Each trains a network of its own; the bits are those of training one after the other."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((160, 6), np.float32)
    y = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)

    def trained(b: Any, seed: int) -> bytes:
        net = bpgpu.MLP([6, 20, 3], backend=b, seed=seed)
        net.fit(X, y, epochs=4, batch_size=16, optimizer=bpgpu.SGD(0.1, 0.9))
        return host(net.theta).tobytes() + net.gradient(X, y)[0].hex().encode()

    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(partial(trained, backend()), range(8)))
    assert found == [trained(CPU, seed) for seed in range(8)]


def test_models_move_between_backends(tmp_path: Path) -> None:
    """Saved on one, trained on with the other: the same bits as if it had stayed."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((40, 4)), rng.integers(0, 3, 40)
    ends = []
    for first, second in ((CPU, CPU), (CPU, backend()), (backend(), CPU)):
        net = bpgpu.MLP([4, 9, 3], backend=first, seed=1)
        net.fit(X, y, epochs=2, batch_size=8, optimizer=bpgpu.SGD(0.1))
        net.save(tmp_path / "m.safetensors")
        net = bpgpu.load(tmp_path / "m.safetensors", backend=second)
        net.fit(X, y, epochs=2, batch_size=8, optimizer=bpgpu.SGD(0.1))
        ends.append(host(net.theta))
    assert same(ends[0], ends[1]) and same(ends[0], ends[2])


def stratified(dtype: str, count: int) -> np.ndarray:
    """Numbers of every exponent and sign, with zeros, subnormals, infinities and NaN, and many around 0 and 1."""
    rng = np.random.default_rng(0)
    integer = np.uint32 if dtype == "float32" else np.uint64
    bits = rng.integers(0, np.iinfo(integer).max, count, dtype=integer, endpoint=True)
    special = np.array([0, -0.0, np.inf, -np.inf, np.nan, np.finfo(dtype).tiny, np.finfo(dtype).max, 1, -1], dtype)
    near = rng.uniform(-30, 30, count).astype(dtype), rng.uniform(-1, 1, count).astype(dtype)
    return np.concatenate([bits.view(dtype), special, *near])


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("activation", bpgpu.ACTIVATIONS)
def test_scalar_functions(activation: str, dtype: str) -> None:
    """f and f' of every activation, over a sample of all numbers."""
    z = stratified(dtype, 4000)[None]
    ones, both = (np.ones((1, 1), dtype), np.ones((z.shape[1], 1), dtype)), (CPU, backend())
    assert same(*(b.activate(b.asarray(z), activation) for b in both))
    for saved in (z, CPU.activate(z, activation)):
        assert same(*(b.hidden_delta(*map(b.asarray, (*ones, saved)), activation) for b in both))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_log_through_the_losses(dtype: str) -> None:
    Z = stratified(dtype, 3000)
    Z = Z[: len(Z) // 3 * 3].reshape(-1, 3)
    labels, targets = np.arange(len(Z)) % 3, np.full(Z.shape, 0.25, dtype)
    for y, loss, output in ((labels, "cross_entropy", "softmax"), (targets, "binary_cross_entropy", "sigmoid")):
        here, there = (b.output_delta(b.asarray(Z), b.asarray(y), loss, output) for b in (CPU, backend()))
        assert same(here[0], there[0]) and same(here[1], there[1])
    assert same(*(b.activate(b.asarray(Z), "softmax") for b in (CPU, backend())))
