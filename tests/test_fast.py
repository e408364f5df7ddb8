"""precision="fp32-tc", "tf32" and "bf16": errors within the bound that bpgpu/fast.py states, everything else as in "exact".

On the emulated device, whose products round their operands and sum in float32, as tensor cores do, and on the GPU if there
is one.
"""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bpgpu
from bpgpu import devices, epochs
from bpgpu.cpu import CPUBackend
from bpgpu.cuda import CUDABackend
from bpgpu.kernels import records
from bpgpu.kernels.names import RULES
from bpgpu.launching import new_record
from tests.emulator import available
from tests.emulator.gpu import GPU

CPU = CPUBackend(threads=1)
CUT = {"fp32-tc": 2.0**-21, "tf32": 2.0**-10, "bf16": 2.0**-7}
SHAPES = (1, 4, 8), (5, 700, 12), (33, 64, 20), (300, 9, 4)

both = pytest.mark.parametrize("precision", CUT)


def within_bound(C: Any, A: np.ndarray, B: np.ndarray, precision: str, plus: Any = 0, least: float = -np.inf) -> bool:
    """The bound of the docstring; one more rounding for what is added after the product.  `least` cuts off, as relu does."""
    e, K = CUT[precision], A.shape[1]
    A, B = A.astype(float), B.astype(float)
    size = np.abs(A) @ np.abs(B)
    exact = np.maximum(A @ B + plus, least)
    bound = 2 * e + e * e + 2.0**-23 * K * (1 + e) ** 2
    if precision == "fp32-tc":
        bound = 2.0**-20 + 2.0**-23 * (K + 2) * (1 + 2.0**-8)
    return bool((abs(C.get() - exact) <= bound * size + 2.0**-23 * abs(exact)).all())


def numbers(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).standard_normal(shape, np.float32)


@both
@pytest.mark.parametrize("shape", SHAPES)
def test_products_are_within_the_bound(exact_cuda: CUDABackend, precision: str, shape: tuple[int, int, int]) -> None:
    """And not exact: the fast path is what ran."""
    b, (n, i, o) = exact_cuda.at(precision, "float32"), shape
    X, W, bias, dZ = numbers(n, i), numbers(i, o), numbers(o), numbers(n, o)
    on = [b.asarray(a) for a in (X, W, bias, dZ)]
    device = exact_cuda.device
    planned = device.planned if isinstance(device, GPU) else 0
    A = b.dense_forward(*on[:3])
    below = b.hidden_delta(on[3], on[1], b.asarray(np.zeros((n, i), np.float32)))
    dW, db = b.dense_gradient(on[0], on[3])
    assert within_bound(A, X, W, precision, bias)
    assert within_bound(below, dZ, W.T, precision)
    assert within_bound(dW, X.T, dZ, precision)
    assert (db.get() == CPU.dense_gradient(X, dZ)[1]).all()
    if isinstance(device, GPU):
        assert device.planned == planned + (2 + (i % 4 == 0)) * (3 if precision == "fp32-tc" else 1)
        assert (A.get() != CPU.dense_forward(X, W, bias)).any()


def test_parts_of_operands(exact_cuda: CUDABackend) -> None:
    """Either part has 10 bits of fraction, and both together are the number, whatever it is."""
    b = exact_cuda.at("fp32-tc", "float32")
    rng = np.random.default_rng(0)
    special = [0.0, -0.0, np.inf, -np.inf, np.nan, 3.4028235e38, -3.4028235e38, 1.2e-38, 1e-45, 1 + 2.0**-11, 1 - 2.0**-24]
    x = np.concatenate([np.array(special, np.float32), rng.integers(0, 1 << 32, 10_001, np.uint32).view(np.float32)])
    source, high, low = (b.asarray(array) for array in (x, np.zeros_like(x), np.zeros_like(x)))
    addresses = dict(zip(("source", "high", "low"), map(b.address, (source, high, low)), strict=True))
    b._launch("parts", "float32", (), new_record(records.PARTS, length=len(x), **addresses), len(x))
    parts = [part.get() for part in (high, low)]
    for part in parts:
        assert ((part.view(np.uint32) & 0x1FFF == 0) | np.isnan(part)).all()
    finite = np.isfinite(x)
    assert np.array_equal(parts[0][~finite], x[~finite], equal_nan=True) and np.isnan(parts[1][~finite]).all()
    exact = x[finite].astype(float)
    left = np.abs(exact - parts[0][finite].astype(float) - parts[1][finite])
    assert (left <= np.maximum(2.0**-22 * np.abs(exact), 2.0**-137)).all() and np.isfinite(parts[0][finite]).all()


@both
def test_infinities_and_nan_show(exact_cuda: CUDABackend, precision: str) -> None:
    b = exact_cuda.at(precision, "float32")
    X, W = numbers(3, 8), numbers(8, 4)
    X[0, 0], X[1, 2], X[2, 5] = np.inf, np.nan, 3.4e38
    W[5] = -2
    with np.errstate(all="ignore"):
        A = b.dense_forward(b.asarray(X), b.asarray(W), b.asarray(np.zeros(4, np.float32))).get()
    assert np.isnan(A[1]).all() and (A[2] == -np.inf).all()
    assert np.isnan(A[0]).all() if precision == "fp32-tc" else np.isinf(A[0]).all()


@both
@pytest.mark.parametrize("activation", bpgpu.ACTIVATIONS)
def test_activations_are_exact_after_the_product(exact_cuda: CUDABackend, precision: str, activation: str) -> None:
    b = exact_cuda.at(precision, "float32")
    X, W, bias = numbers(7, 24), numbers(24, 16), numbers(16)
    on = [b.asarray(a) for a in (X, W, bias)]
    Z = b.empty((7, 16), np.float32)
    plain, with_z, without = b.dense_forward(*on), b.dense_forward(*on, activation, Z=Z), b.dense_forward(*on, activation)
    expected = CPU.activate(plain.get(), activation)
    assert (Z.get() == plain.get()).all() and (with_z.get() == expected).all()
    if activation == "relu":  # in the product's own epilogue, for which the library may choose another algorithm
        assert within_bound(without, X, W, precision, bias, least=0)
    if activation != "relu" or isinstance(exact_cuda.device, GPU):
        assert (without.get() == expected).all()

    saved = Z.get() if activation in ("gelu", "silu") else expected
    V = numbers(16, 8)
    delta, V_ = b.asarray(numbers(7, 8)), b.asarray(V)
    product = b.hidden_delta(delta, V_, b.asarray(saved)).get()
    gain = np.stack(
        [CPU.hidden_delta(np.ones((1, 1), "f4"), np.ones((16, 1), "f4"), row[None], activation)[0] for row in saved]
    )
    assert (b.hidden_delta(delta, V_, b.asarray(saved), activation).get() == product * gain).all()


@both
@pytest.mark.parametrize("shift", range(4))
def test_biases_lie_anywhere(exact_cuda: CUDABackend, precision: str, shift: int) -> None:
    """In theta they come behind weights of any number, at any multiple of 4 bytes."""
    b = exact_cuda.at(precision, "float32")
    X, W, room = numbers(7, 24), numbers(24, 16), numbers(32)
    device = b.asarray(room)
    bias = device[shift : shift + 16]
    for activation, least in (("identity", -np.inf), ("relu", 0)):
        with b.capture() as program:
            A = b.dense_forward(b.asarray(X), b.asarray(W), bias, activation)
        program.run()
        assert within_bound(A, X, W, precision, room[shift : shift + 16], least)
        b.write(device, room * 2)  # what is recorded sees the bias of its time
        program.run()
        assert within_bound(A, X, W, precision, room[shift : shift + 16] * 2, least)
        b.write(device, room)


@both
@pytest.mark.parametrize("layers", [[3, 5, 8, 4], [7, 9, 11, 12, 8], [1, 4, 1]])
def test_networks_of_odd_sizes(exact_cuda: CUDABackend, precision: str, layers: list[int]) -> None:
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((33, layers[0])), rng.standard_normal((33, layers[-1]))
    losses = []
    for backend, fast in (("cpu", "exact"), (exact_cuda, precision)):
        net = bpgpu.MLP(layers, loss="squared_error", backend=backend, precision=fast, seed=1)
        losses.append([net.train_step(X, y, bpgpu.SGD(0.05)) for _ in range(5)])
    assert np.allclose(*losses, rtol=8 * CUT[precision], atol=0)


@both
@pytest.mark.parametrize("rule", RULES)
def test_update_is_exact_after_the_product(exact_cuda: CUDABackend, precision: str, rule: str) -> None:
    b = exact_cuda.at(precision, "float32")
    X, dZ, W, bias = numbers(9, 20), numbers(9, 8), numbers(20, 8), numbers(8)
    hyper = np.array([[0.1, 0.01, 0.02, 0.03, 0.9, 0.1, 0.8, 0.2, 0.1], [0.1, 0, 0, 0, 0.9, 0.1, 0.8, 0.2, 0.1]], np.float32)
    dW, db = (g.get() for g in b.dense_gradient(b.asarray(X), b.asarray(dZ)))
    here = [W.copy(), bias.copy()] + [abs(numbers(*a.shape)) for _ in RULES[rule] for a in (W, bias)]
    there = [b.asarray(a) for a in here]
    for k, gradient in enumerate((dW, db)):
        states = [state.reshape(-1) for state in here[2 + k :: 2]]
        CPU.update(here[k].reshape(-1), gradient.reshape(-1), rule, hyper[k], states)
    pairs = list(zip(there[2::2], there[3::2], strict=True))
    b.dense_update(b.asarray(X), b.asarray(dZ), there[0], there[1], rule, b.asarray(hyper), pairs)
    assert all((mine == other.get()).all() for mine, other in zip(here, there, strict=True))


@both
def test_gradients_of_networks(exact_cuda: CUDABackend, precision: str) -> None:
    """Of a whole network, against float64: an error of the size of the operands', and the exact mode's on the exact backend."""
    X, y = numbers(64, 32), np.arange(64) % 8
    wanted = bpgpu.MLP([32, 48, 48, 8], activation=["tanh", "gelu"], dtype="float64", seed=2)
    net = bpgpu.MLP([32, 48, 48, 8], activation=["tanh", "gelu"], backend=exact_cuda, precision=precision, seed=2)
    loss, gradient = wanted.gradient(X, y)
    found, approximate = net.gradient(X, y)
    error = np.linalg.norm(approximate.get() - gradient) / np.linalg.norm(gradient)
    assert error < 4 * CUT[precision]
    if isinstance(exact_cuda.device, GPU):  # the library may take more exact products where they are small
        assert error > CUT[precision] / 1000
    assert abs(found - loss) < 4 * CUT[precision]


@both
@pytest.mark.parametrize("rule", ["momentum", "adam with dropout"])
def test_training(exact_cuda: CUDABackend, precision: str, rule: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Recorded and launched as graphs, with data slab by slab too, and the same bits either way."""
    rng = np.random.default_rng(0)
    X = rng.standard_normal((960, 64), np.float32)
    y = (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)
    resident, fill = [], epochs.Epochs._fill
    monkeypatch.setattr(epochs.Epochs, "_fill", lambda self, k: (resident.append(self.resident), fill(self, k)))
    ends, adam, small = [], rule != "momentum", 2_200_000 if precision == "fp32-tc" else 740_000
    devices = [exact_cuda] if not isinstance(exact_cuda.device, GPU) else [CUDABackend(GPU(limit=m)) for m in (1 << 30, small)]
    for backend in devices:
        net = bpgpu.MLP([64, 20, 4], backend=backend, precision=precision, seed=1, dropout=0.1 * adam)
        optimizer = bpgpu.Adam(0.02) if adam else bpgpu.SGD(0.1, 0.9)
        history = net.fit(X, y, epochs=4, batch_size=32, optimizer=optimizer, validation_data=(X, y))
        assert history.validation_accuracy[-1] > 0.9
        ends.append(net.theta.get().tobytes())
    assert ends[0] == ends[-1] and (resident or not isinstance(exact_cuda.device, GPU)) and not any(resident)


@pytest.mark.parametrize("precision", ["exact", *CUT])
@pytest.mark.parametrize("index", [0, 1])
def test_copies_stay_on_their_gpu(precision: str, index: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pickled or copied: the same GPU, by its number, and the same precision."""
    if available() is not None:
        pytest.skip(f"no emulator here: {available()}")
    device = GPU()
    device.index = index
    monkeypatch.setitem(devices._instances, f"cuda:{index}", CUDABackend(device))
    net = bpgpu.MLP([4, 8, 4], backend=f"cuda:{index}", precision=precision, seed=1)
    for other in (pickle.loads(pickle.dumps(net)), copy.deepcopy(net)):
        assert other.backend is net.backend and other.theta is not net.theta
        assert (other.predict_proba(np.ones((3, 4))) == net.predict_proba(np.ones((3, 4)))).all()


def test_who_has_which_precision(exact_cuda: CUDABackend, tmp_path: Path) -> None:
    for backend in ("cpu", "numpy"):
        for precision in CUT:
            with pytest.raises(ValueError, match=rf"^precision '{precision}' is for GPUs; the backend '{backend}' "):
                bpgpu.MLP([4, 3], backend=backend, precision=precision)
    with pytest.raises(ValueError, match="did you mean 'tf32'"):
        bpgpu.MLP([4, 3], precision="tf23")
    with pytest.raises(ValueError, match=r"^precision 'bf16' goes with dtype 'float32', not 'float64'$"):
        bpgpu.MLP([4, 3], backend=exact_cuda, dtype="float64", precision="bf16")
    net = bpgpu.MLP([4, 8, 4], backend=exact_cuda, precision="tf32")
    assert (
        "cuda tf32" in repr(net)
        and net.backend is exact_cuda.at("tf32", "float32")
        and net.backend.at("exact", "float32") is exact_cuda
    )
    net.save(tmp_path / "m")
    loaded = [bpgpu.load(tmp_path / "m", backend=exact_cuda, precision=p) for p in ("exact", "tf32", "bf16")]
    assert [n.backend.name for n in loaded] == ["cuda", "cuda tf32", "cuda bf16"]
    bpgpu.MLP([4, 3], dtype="float64").save(tmp_path / "d")
    with pytest.raises(ValueError, match=r"^precision 'tf32' goes with"):
        bpgpu.load(tmp_path / "d", backend=exact_cuda, precision="tf32")


def test_a_backend_is_pickled_by_its_name(exact_cuda: CUDABackend, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(devices._instances, "cuda:0", exact_cuda)
    for backend in (exact_cuda, exact_cuda.at("tf32", "float32")):
        assert pickle.loads(pickle.dumps(backend)) is backend is copy.deepcopy(backend)
