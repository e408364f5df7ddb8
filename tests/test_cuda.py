"""The whole CUDA backend, its own launch code and its own kernels, bit for bit against the CPU backend.

Without a GPU the kernels run on the emulator (tests/emulator): compiled by g++, every CUDA thread a fiber.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bpgpu
from bpgpu import cuda
from bpgpu.backend import BackendUnavailable
from bpgpu.cpu import CPUBackend
from bpgpu.cuda import CUDABackend
from bpgpu.tiles import TILES, Tile
from tests.emulator import EmulatedDevice, available

pytestmark = pytest.mark.skipif(available() is not None, reason=f"no emulator here: {available()}")
CPU = CPUBackend(threads=1)
ORDERS = "ascending", "descending", "random"
_backends: dict[Any, CUDABackend] = {}


def emulated(order: str = "ascending", tile: Tile | None = None, split: int = 1) -> CUDABackend:
    """The CUDA backend on the emulator, kept for the length of the tests; `tile` and `split` are forced on its products."""
    key = order, tile, split
    if key not in _backends:
        backend = CUDABackend(EmulatedDevice(order=order))
        if tile is not None:
            backend.plan = lambda dtype, rows, cols, K: (tile, min(split, -(-K // 256)))  # type: ignore[method-assign]
        _backends[key] = backend
    return _backends[key]


def same(a: Any, b: Any) -> bool:
    """The same bits, but any NaN is as good as another."""
    a, b = np.asarray(a), np.asarray(b)
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
    compare(emulated(), [5, 19, 7, 3], 9, activation=activation, dtype=dtype, steps=2)


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
    compare(emulated(), [4, 6, 5], 11, loss=loss, output_activation=output, y=y, activation="tanh", dtype=dtype, steps=2)


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reduction(reduction: str) -> None:
    compare(emulated(), [4, 6, 3], 5, reduction=reduction, steps=1)


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
    ],
)
@pytest.mark.parametrize("tile", TILES["float32"], ids=lambda t: f"{t.BM}x{t.BN}")
@pytest.mark.parametrize("split", [1, 2, 9])
def test_shapes(layers: list[int], n: int, tile: Tile, split: int) -> None:
    """Edges of tiles, sums over one chunk, two and three, their chunks in one block and in several."""
    compare(emulated(tile=tile, split=split), layers, n, steps=1)


@pytest.mark.parametrize("order", ORDERS)
def test_bits_do_not_depend_on_the_order_of_threads(order: str) -> None:
    """A race would show: the threads of a block and the blocks of a grid run in this order between barriers."""
    compare(emulated(order), [40, 70, 30, 12], 37, activation="gelu", steps=2)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_a_whole_run(momentum: float) -> None:
    """fit: shuffles, gathered batches with a smaller one at the end, weights, recorded programs, validation, prediction."""
    rng = np.random.default_rng(0)
    X, weight = rng.standard_normal((70, 6)), rng.random(70)
    y = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)
    results = []
    for backend in (CPU, emulated()):
        net = bpgpu.MLP([6, 20, 3], backend=backend, seed=5)
        history = net.fit(
            X, y, epochs=3, batch_size=16, optimizer=bpgpu.SGD(0.1, momentum), validation_data=(X, y), sample_weight=weight
        )
        results.append((np.array(net.theta), history, net.predict(X), net.predict_proba(X), net.evaluate(X, y)))
    (theta, history, labels, proba, score), (theta_2, history_2, labels_2, proba_2, score_2) = results
    assert same(theta, theta_2) and same(proba, proba_2) and (labels == labels_2).all() and score == score_2
    assert history.loss == history_2.loss and history.validation_loss == history_2.validation_loss


def test_models_move_between_backends(tmp_path: Path) -> None:
    """Saved on one, trained on with the other: the same bits as if it had stayed."""
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((40, 4)), rng.integers(0, 3, 40)
    ends = []
    for first, second in ((CPU, CPU), (CPU, emulated()), (emulated(), CPU)):
        net = bpgpu.MLP([4, 9, 3], backend=first, seed=1)
        net.fit(X, y, epochs=2, batch_size=8, optimizer=bpgpu.SGD(0.1))
        net.save(tmp_path / "m.safetensors")
        net = bpgpu.load(tmp_path / "m.safetensors", backend=second)
        net.fit(X, y, epochs=2, batch_size=8, optimizer=bpgpu.SGD(0.1))
        ends.append(np.array(net.theta))
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
    one, gpu = np.ones((z.shape[1], 1), dtype), emulated()
    assert same(CPU.activate(z, activation), gpu.activate(z, activation))
    for backend_saved in (z, CPU.activate(z, activation)):
        delta = np.ones((1, 1), dtype)
        results = [b.hidden_delta(delta, one, backend_saved, activation) for b in (CPU, gpu)]
        assert same(*results)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_log_through_the_losses(dtype: str) -> None:
    Z = stratified(dtype, 3000)
    Z = Z[: len(Z) // 3 * 3].reshape(-1, 3)
    labels, targets = np.arange(len(Z)) % 3, np.full(Z.shape, 0.25, dtype)
    for y, loss, output in ((labels, "cross_entropy", "softmax"), (targets, "binary_cross_entropy", "sigmoid")):
        here, there = (b.output_delta(Z, y, loss, output) for b in (CPU, emulated()))
        assert same(here[0], there[0]) and same(here[1], there[1])
    assert same(CPU.activate(Z, "softmax"), emulated().activate(Z, "softmax"))


def test_address_and_undefined_behaviour_sanitizers() -> None:
    """One training run with every operation under AddressSanitizer and UndefinedBehaviorSanitizer."""
    from tests.emulator import sanitized_environment

    environment = sanitized_environment()
    if environment is None:
        pytest.skip("this g++ has no sanitizers")
    code = """
import numpy as np, bpgpu
from bpgpu.cuda import CUDABackend
from tests.emulator import EmulatedDevice
rng = np.random.default_rng(0)
for dtype in ("float32", "float64"):
    device = EmulatedDevice(sanitize=True)
    net = bpgpu.MLP([37, 70, 21, 5], activation=["gelu", "tanh"], backend=CUDABackend(device), dtype=dtype)
    X, y = rng.standard_normal((21, 37)), rng.integers(0, 5, 21)
    net.gradient(X, y)
    net.fit(X, y, epochs=1, batch_size=8, optimizer=bpgpu.SGD(0.1, 0.9), validation_data=(X, y), sample_weight=rng.random(21))
    net.predict_proba(X)
print("clean")
"""
    root = Path(__file__).parent.parent
    result = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, **environment, "PYTHONPATH": str(root)}, cwd=root,
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert result.stdout.strip() == "clean", result.stderr[-3000:]


def test_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = cuda.why_not()
    if reason is None:
        pytest.skip("there is a GPU here")
    assert bpgpu.backends()["cuda"] == reason
    with pytest.raises(BackendUnavailable) as error:
        bpgpu.get_backend("cuda")
    assert str(error.value) == reason and reason.count("\n") == 0
    for word in ("bpgpu[cuda13]", "nvidia-smi"):
        if word in reason:
            break
    else:
        raise AssertionError(f"no mend in {reason!r}")


def test_auto_falls_back_and_says_so_once() -> None:
    if cuda.why_not() is None:
        pytest.skip("there is a GPU here")
    code = "import bpgpu; print([bpgpu.get_backend('auto').name for _ in range(3)])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "['cpu', 'cpu', 'cpu']"
    assert result.stderr.count("backend 'auto' is the CPU") == 1


@pytest.mark.parametrize("name", ["cuda:x", "cuda:-1", "cpu:1", "auto:0", "cuda1"])
def test_names_that_are_no_backend(name: str) -> None:
    with pytest.raises(ValueError, match="unknown backend"):
        bpgpu.get_backend(name)
