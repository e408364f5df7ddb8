"""What a caller sees of a GPU's memory: arrays that are there already, data larger than it, no room, steps in one launch.

On the emulated device, whose arrays are as strict as CuPy's and whose memory has a limit.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import bpgpu
from bpgpu import cuda, design, epochs, health, mlp, per_example
from bpgpu.cpu import CPUBackend
from bpgpu.cuda import CUDABackend
from bpgpu.training import Step
from tests.emulator import available
from tests.emulator.gpu import GPU, Block, GPUArray

pytestmark = [
    pytest.mark.skipif(available() is not None, reason=f"no emulator here: {available()}"),
    pytest.mark.usefixtures("every_epoch_looked_at"),
]
CPU = CPUBackend(threads=1)


@pytest.fixture
def gpu() -> GPU:
    return GPU()


def on(gpu: GPU, array: Any) -> GPUArray:
    """An array that another library has put there."""
    return GPUArray(np.array(array), Block(gpu.index))


def trained(backend: Any, X: Any, y: Any, *, layers: Any = (6, 20, 3), batch: int = 16, **options: Any) -> tuple[Any, ...]:
    how = {k: v for k, v in options.items() if k not in ("dropout", "reduction")}
    options = {k: v for k, v in options.items() if k not in how}
    how["optimizer"] = how["optimizer"]() if "optimizer" in how else bpgpu.SGD(0.1, 0.9)
    net = bpgpu.MLP(layers, backend=backend, seed=5, **options)
    history = net.fit(X, y, **{"epochs": 3, **how}, batch_size=batch)
    return (
        net.backend.to_numpy(net.theta).tobytes(),
        history.loss,
        history.validation_loss,
        history.validation_accuracy,
        history.health,
    )


def examples(n: int = 70, i: int = 6) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((n, i), np.float32)
    return X, (X[:, 0] > 0).astype(int) + (X[:, 1] > 0)


# -- arrays that are on the GPU already ---------------------------------------------------------------------------------


@pytest.mark.parametrize("y_on_gpu", [True, False])
@pytest.mark.parametrize("X_on_gpu", [True, False])
def test_training_with_arrays_of_either_kind_gives_the_same_bits(gpu: GPU, X_on_gpu: bool, y_on_gpu: bool) -> None:
    X, y = examples()
    weight = np.random.default_rng(1).random(len(X))
    expected = trained(CPU, X, y, sample_weight=weight, validation_data=(X, y))
    X_, w_ = (on(gpu, X), on(gpu, weight)) if X_on_gpu else (X, weight)
    y_ = on(gpu, y) if y_on_gpu else y
    assert trained(CUDABackend(gpu), X_, y_, sample_weight=w_, validation_data=(X_, y_)) == expected


def test_results_come_back_as_the_kind_that_went_in(gpu: GPU) -> None:
    X, _ = examples(2100)  # three blocks
    for loss, layers in (("cross_entropy", [6, 5, 3]), ("binary_cross_entropy", [6, 5, 1]), ("squared_error", [6, 5, 2])):
        here, there = (bpgpu.MLP(layers, loss=loss, backend=b) for b in (CPU, CUDABackend(gpu)))
        for name in ("outputs", "predict", *(["predict_proba"] if loss != "squared_error" else [])):
            expected = getattr(here, name)(X)
            from_host, from_gpu = getattr(there, name)(X), getattr(there, name)(on(gpu, X))
            assert type(from_host) is np.ndarray and type(from_gpu) is GPUArray
            assert expected.dtype == from_host.dtype == from_gpu.dtype
            assert expected.tobytes() == from_host.tobytes() == from_gpu.get().tobytes()


@pytest.mark.parametrize("loss", ["cross_entropy", "binary_cross_entropy", "squared_error"])
def test_labels_and_targets_on_the_gpu(gpu: GPU, loss: str) -> None:
    X, labels = examples()
    for y in (labels, labels.astype(np.float32)[:, None], np.eye(3, dtype=np.float32)[labels]):
        here, there = (bpgpu.MLP([6, 5, 3], loss=loss, backend=b) for b in (CPU, CUDABackend(gpu)))
        assert here.evaluate(X, y) == there.evaluate(on(gpu, X), on(gpu, y)) == there.evaluate(X, on(gpu, y))
        (one, gradient), (other, gradient_2) = here.gradient(X, y), there.gradient(on(gpu, X), on(gpu, y))
        assert one == other and gradient.tobytes() == gradient_2.get().tobytes()
        sgd = [bpgpu.SGD(0.1) for _ in range(2)]
        assert here.train_step(X, y, sgd[0]) == there.train_step(on(gpu, X), on(gpu, y), sgd[1])


@pytest.mark.parametrize("targets", [True, False])
def test_batches_on_the_gpu_are_gathered(gpu: GPU, targets: bool) -> None:
    """Each part of a batch where it is: the same bits; and a network on the host says what to do."""
    X, y = examples()
    y = np.eye(3, dtype=np.float32)[y] if targets else y
    expected = trained(CPU, X, y)
    parts = [(X[s : s + 30], y[s : s + 30]) for s in range(0, len(X), 30)]
    for X_on, y_on in ((True, True), (True, False), (False, True)):
        batches = [(on(gpu, a) if X_on else a, on(gpu, b) if y_on else b) for a, b in parts]
        assert trained(CUDABackend(gpu), iter(batches), None) == expected
        name = "X" if X_on else "y"
        with pytest.raises(TypeError, match=rf"^{name} is on a GPU, .*{name}\.get\(\) or {name}\.cpu\(\).*backend='cuda'$"):
            trained(CPU, [*parts, *batches], None)


def test_other_dtypes_and_layouts_on_the_gpu(gpu: GPU) -> None:
    X, _ = examples()
    here, there = (bpgpu.MLP([6, 5, 3], backend=b) for b in (CPU, CUDABackend(gpu)))
    others = X.astype(np.float64), X.astype(np.float16), (X * 9).astype(np.int8), X > 0
    for given in (*others, np.asfortranarray(X), X[::2, ::-1]):
        device = GPUArray(given)
        assert here.outputs(given).tobytes() == there.outputs(device).get().tobytes()


def in_blocks_of(rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """So many rows go through a network at a time, where it does not matter."""
    for module in (design, mlp, per_example):
        monkeypatch.setattr(module, "BLOCK", rows)


def test_another_gpu_than_the_current_one(gpu: GPU, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is called, everything is computed on the network's GPU, with arrays of the host or of that GPU."""
    in_blocks_of(512, monkeypatch)
    gpu.index = 1
    X, y = examples(2 * 512 + 3)
    weight = np.random.default_rng(1).random(len(X))
    here, there = (bpgpu.MLP([6, 5, 3], backend=b, seed=1) for b in (CPU, CUDABackend(gpu)))
    for given in (lambda array: array, lambda array: on(gpu, array)):
        results = []
        for net, place in ((here, lambda array: array), (there, given)):
            numpy = net.backend.to_numpy
            net.fit(place(X), place(y), epochs=1, validation_data=(place(X), place(y)), optimizer=bpgpu.SGD(0.1))
            net.train_step(place(X), place(y), bpgpu.SGD(0.1), sample_weight=place(weight))
            found = [net.evaluate(place(X), place(y)), net.evaluate(place(X), place(y), sample_weight=weight)]
            for result in (net.outputs(place(X)), net.predict(place(X)), net.gradient(place(X), place(y))[1], net.theta):
                found.append(numpy(result).tobytes())
            norms = net.per_example_norms(place(X), place(y))
            results.append(
                [*found, norms.total.tobytes(), numpy(net.reverse(net.forward(place(X)))(place(X[:, :3]))[1]).tobytes()]
            )
        assert results[0] == results[1]


@pytest.mark.parametrize(("dtype", "columns"), [("u1", 3), ("u1", 4), ("f2", 5), ("i2", 1), ("f4", 3), ("f8", 7)])
def test_rows_of_any_size_are_gathered(gpu: GPU, dtype: str, columns: int) -> None:
    b, rows, order = CUDABackend(gpu), np.arange(7 * columns).reshape(7, columns).astype(dtype), np.array([6, 0, 3])
    b.gather(b.asarray(rows), b.asarray(order), target := b.empty((3, columns), dtype))
    assert (target.get() == rows[order]).all()


def test_operations_say_whose_arrays_they_take(gpu: GPU) -> None:
    X, W, b = np.ones((2, 3), "f4"), np.ones((3, 4), "f4"), np.ones(4, "f4")
    with pytest.raises(TypeError, match="the array is a GPUArray; expected a NumPy array"):
        CPU.dense_forward(on(gpu, X), W, b)


def test_batches_of_many_sizes_do_not_pile_up(gpu: GPU) -> None:
    X, y = examples(120)
    net, sgd = bpgpu.MLP([6, 40, 3], backend=CUDABackend(gpu)), bpgpu.SGD(0.1)
    net.train_step(X, y, sgd)
    first = gpu.used
    for n in range(60, 120):
        net.train_step(X[:n], y[:n], sgd)
    assert gpu.used < first + 5 * 120 * Step.bytes_each(net, True, False)


def test_a_single_row_with_any_stride(gpu: GPU) -> None:
    """As a slice of a wide array has it; it is contiguous all the same."""
    wide = np.arange(2 * (2**23 + 80), dtype=np.float32).reshape(2, -1)
    row = np.lib.stride_tricks.as_strided(wide, (1, 6), wide.strides)
    assert row.flags.c_contiguous and row.strides[0] > cuda.LONGEST_ROW
    here, there = (bpgpu.MLP([6, 5, 3], backend=b) for b in (CPU, CUDABackend(gpu)))
    assert here.outputs(row).tobytes() == there.outputs(GPUArray(row)).get().tobytes()
    assert here.gradient(row, [1])[1].tobytes() == there.gradient(GPUArray(row), [1])[1].get().tobytes()


def test_an_array_that_is_right_is_used_where_it_is(gpu: GPU) -> None:
    X = on(gpu, examples()[0])
    net = bpgpu.MLP([6, 5, 3], backend=CUDABackend(gpu))
    assert gpu.address(net.forward(X).a[0]) == gpu.address(X)


def bad(array: np.ndarray, index: Any, value: float) -> np.ndarray:
    array = array.copy()
    array[index] = value
    return array


X0, Y0 = examples()
WRONG = {
    "nan": (bad(X0, (3, 2), np.nan), Y0, None),
    "infinity": (bad(X0, (69, 5), -np.inf), Y0, None),
    "too large": (bad(X0.astype(np.float64), (1, 1), 1e300), Y0, None),
    "columns": (X0[:, :5], Y0, None),
    "1-D": (X0[0], Y0, None),
    "no rows": (X0[:0], Y0, None),
    "complex": (X0.astype(np.complex64), Y0, None),
    "label too large": (X0, bad(Y0, 7, 3), None),
    "label negative": (X0, bad(Y0, 8, -1), None),
    "label no integer": (X0, bad(Y0.astype(float), 9, 0.5), None),
    "labels too few": (X0, Y0[:-1], None),
    "probabilities": (X0, np.full((70, 3), 0.4, np.float32), None),
    "probability negative": (X0, bad(np.full((70, 3), 0.5, np.float32), (0, 0), -0.5), None),
    "target nan": (X0, bad(np.full((70, 3), 0.5), (5, 1), np.nan), None),
    "target columns": (X0, np.zeros((70, 4)), None),
    "weight negative": (X0, Y0, bad(np.ones(70), 4, -1)),
    "weights zero": (X0, Y0, np.zeros(70)),
}


@pytest.mark.parametrize("what", WRONG)
def test_bad_arrays_on_the_gpu_are_refused_with_the_sentence_of_the_host(gpu: GPU, what: str) -> None:
    """And found there: only single numbers come to the host."""
    X, y, weight = WRONG[what]
    said = []
    for backend in (CPU, CUDABackend(gpu)):
        net = bpgpu.MLP([6, 20, 3], backend=backend)
        before, gpu.downloaded = net.backend.to_numpy(net.theta).copy(), 0
        give = (lambda a: a) if backend is CPU else GPUArray
        with pytest.raises((ValueError, TypeError)) as error:
            net.fit(give(X), give(y), sample_weight=None if weight is None else give(weight))
        said.append((type(error.value), str(error.value)))
        assert gpu.downloaded <= (0 if weight is None else weight.nbytes)
        assert net.backend.to_numpy(net.theta).tobytes() == before.tobytes()
    assert said[0] == said[1]


@pytest.mark.parametrize("backend", ["cpu", "numpy"])
def test_a_network_on_the_host_says_what_to_do_with_arrays_of_a_gpu(gpu: GPU, backend: str) -> None:
    X, y = examples()
    net = bpgpu.MLP([6, 5, 3], backend=backend)
    device = on(gpu, X)
    calls: list[Any] = [
        *(lambda f=f: f(device) for f in (net.forward, net.predict, net.outputs, net.predict_proba)),
        *(lambda f=f: f(device, y) for f in (net.fit, net.evaluate, net.gradient)),
    ]
    for call in calls:
        with pytest.raises(TypeError, match=r"^X is on a GPU, .*'(cpu|numpy)' .*X\.get\(\) or X\.cpu\(\).*backend='cuda'$"):
            call()
    with pytest.raises(TypeError, match=r"^y is on a GPU"):
        net.fit(X, on(gpu, y))
    with pytest.raises(TypeError, match=r"^sample_weight is on a GPU"):
        net.fit(X, y, sample_weight=on(gpu, np.ones(len(X))))


class Tensor:
    """Memory of some library that speaks DLPack alone."""

    def __init__(self, array: Any, device: int) -> None:
        self.array, self.device = array, device

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)

    def __array__(self, dtype: Any = None, copy: Any = None) -> np.ndarray:
        return np.asarray(self.array, dtype)


def test_tensors_of_other_libraries(gpu: GPU) -> None:
    """On the host they are arrays like others; on a GPU of which this backend has no array, one sentence."""
    X, _ = examples()
    there = bpgpu.MLP([6, 5, 3], backend=CUDABackend(gpu))
    assert there.outputs(Tensor(X, 1)).tobytes() == there.outputs(X).tobytes()
    for net in (there, bpgpu.MLP([6, 5, 3])):
        with pytest.raises(TypeError, match=r"^X (cannot be used on this GPU: it is not|is on a GPU)"):
            net.predict(Tensor(X, 2))


@pytest.mark.parametrize("named", [True, False])
def test_results_are_of_the_library_of_X(named: bool, gpu: GPU, monkeypatch: pytest.MonkeyPatch) -> None:
    """By its array namespace, or, as torch has none, by the name of its module."""
    X, _ = examples()
    net, theirs = bpgpu.MLP([6, 5, 3], backend=CUDABackend(gpu)), on(gpu, X)
    library = SimpleNamespace(from_dlpack=lambda array: ("theirs", array.get()))
    monkeypatch.setitem(sys.modules, "some_library", SimpleNamespace() if named else library)
    contents = {"__module__": "some_library.tensor"} | ({"__array_namespace__": lambda self: library} if named else {})
    theirs.__class__ = type("Tensor", (type(theirs),), contents)
    for call in (net.outputs, net.predict, net.predict_proba):
        kind, result = call(theirs)
        assert kind == "theirs" and result.tobytes() == call(X).tobytes()


def test_assigning_to_parameters(gpu: GPU) -> None:
    net = bpgpu.MLP([6, 5, 3], backend=CUDABackend(gpu))
    net.weights[0] = np.ones((6, 5))
    net.biases[1] = on(gpu, np.full(3, 2, np.float32))
    assert (net.weights[0].get() == 1).all() and (net.biases[1].get() == 2).all()
    before = net.theta.get()
    net.theta -= net.theta * 0.5
    assert (net.theta.get() == before / 2).all()


# -- data larger than the memory ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("y_on_gpu", [True, False])
@pytest.mark.parametrize("targets", [True, False])
@pytest.mark.parametrize("n", [1000, 992, 37])
def test_data_that_do_not_fit_come_slab_by_slab_with_the_same_bits(
    monkeypatch: pytest.MonkeyPatch, n: int, targets: bool, y_on_gpu: bool
) -> None:
    X, y = examples(n, 64)
    y = np.eye(3, dtype=np.float32)[y] if targets else y
    weight = np.random.default_rng(1).random(n)
    how: dict[str, Any] = {"layers": (64, 10, 3), "sample_weight": weight, "validation_data": (X[: n // 5], y[: n // 5])}
    how["batch"] = batch = 16 if n > 100 else 4
    expected = trained(CPU, X, y, **how)
    monkeypatch.setattr(epochs, "SLAB_BYTES", 3 * batch * X[0].nbytes)
    device = GPU(limit=X.nbytes // 2 + 200_000 if n > 100 else 49_000)
    seen: list[Any] = []
    first_fill = epochs.Epochs._fill
    monkeypatch.setattr(epochs.Epochs, "_fill", lambda self, number: (seen.append(self), first_fill(self, number)))
    assert trained(CUDABackend(device), X, on(device, y) if y_on_gpu else y, **how) == expected
    assert not seen[0].resident and seen[0].slab in (batch, 2 * batch)
    assert device.peak <= device.limit


def test_a_callback_ends_a_run_in_the_middle_of_a_slab(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epochs, "SLAB_BYTES", 64 * 1024)
    monkeypatch.setattr(epochs, "SLICE_SECONDS", 1e9)
    X, y = examples(2000, 64)
    ends = []
    for device in (GPU(limit=300_000), GPU()):
        seen: list[int] = []
        end = lambda p, seen=seen: seen.append(p.examples) or p.examples >= 80  # noqa: E731
        ends.append((trained(CUDABackend(device), X, y, layers=(64, 10, 3), callbacks=end)[0], seen))
    assert ends[0] == ends[1] and ends[0][1] == [16, 80]


RULES: dict[str, dict[str, Any]] = {
    "bounded": {"optimizer": lambda: bpgpu.Adam(0.01, clip_norm=0.1, max_norm=1.0)},
    "clipped": {"optimizer": lambda: bpgpu.SGD(0.1), "clip_per_example": 0.5},
    "schedule": {"optimizer": lambda: bpgpu.SGD(lambda t: 0.2 / (1 + t), 0.9, nesterov=True)},
    "adam": {"optimizer": lambda: bpgpu.Adam(0.01, weight_decay=0.01), "class_weight": [1, 2, 3]},
    "penalties by weight": {"optimizer": lambda: bpgpu.AdamW(0.01, average_penalties=True), "class_weight": "balanced"},
    "smoothed": {"optimizer": lambda: bpgpu.RMSprop(0.01), "label_smoothing": 0.1},
}


@pytest.mark.parametrize("on_the_gpu", [True, False])
@pytest.mark.parametrize("rule", RULES)
def test_streamed_data_meet_dropout_schedules_weights_and_checkpoints(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, rule: str, on_the_gpu: bool
) -> None:
    """Slab by slab, interrupted in the middle of a slab and resumed: the bits of the CPU."""
    X, y = examples(333, 64)
    how = {**RULES[rule], "layers": (64, 12, 3), "batch": 16, "dropout": [0.2, 0.5]}
    how["sample_weight"] = np.random.default_rng(1).random(len(X))
    expected = trained(CPU, X, y, **how)
    monkeypatch.setattr(epochs, "SLAB_BYTES", 3 * 16 * X[0].nbytes)
    monkeypatch.setattr(epochs, "SLICE_SECONDS", 0.0)
    resident: set[bool] = set()
    fill = epochs.Epochs._fill
    monkeypatch.setattr(epochs.Epochs, "_fill", lambda self, k: (resident.add(self.resident), fill(self, k)))

    def device() -> CUDABackend:
        return CUDABackend(GPU() if on_the_gpu else GPU(limit=190_000))

    def run(**more: Any) -> tuple[Any, ...]:
        b = device()
        given = (on(b.device, X), on(b.device, y)) if on_the_gpu else (X, y)  # type: ignore[arg-type]
        return trained(b, *given, **how, **more)

    seen: list[int] = []

    class Look(bpgpu.Callback):
        saves = True

        def on_batch_end(self, progress: bpgpu.Progress) -> bool:
            seen.append(progress.examples)
            if progress.epoch == 1 and progress.examples >= 80:
                progress.save(tmp_path / "c")
                return True
            return False

    run(callbacks=Look())
    assert seen[-1] == 80 and seen[0] == 16
    assert run(resume=tmp_path / "c") == expected
    assert trained(CPU, X, y, resume=tmp_path / "c", **how) == expected
    assert resident == (set() if on_the_gpu else {False})


@pytest.mark.parametrize("limit", [1 << 40, 150_000])
def test_divergence_is_found_where_it_is(limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epochs, "SLAB_BYTES", 1 << 13)
    X, y = examples(300, 64)
    X[np.random.default_rng(0).permutation(300)[:5]] *= 1e30
    said = []
    for backend in (CPU, CUDABackend(GPU(limit=limit))):
        net = bpgpu.MLP([64, 12, 3], backend=backend, seed=5)
        with pytest.raises(bpgpu.Diverged, match="first in the outputs of layer") as error:
            net.fit(X, y, batch_size=16, optimizer=bpgpu.SGD(1e8))
        said.append((str(error.value), net.backend.to_numpy(net.theta).tobytes()))
    assert said[0] == said[1]


def test_data_that_fit_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    fills: list[Any] = []
    monkeypatch.setattr(CUDABackend, "buffer", lambda *a: fills.append(a))
    trained(CUDABackend(GPU()), *examples())
    assert not fills


@pytest.mark.parametrize("validation", [50, 1124])
def test_what_comes_after_an_epoch_is_reckoned_with(validation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the limit: there is no room from the start, or the data come slab by slab, or they stay; and there is room for
    the validation, the look and the best weights then."""
    in_blocks_of(1024, monkeypatch)
    monkeypatch.setattr(epochs, "SLAB_BYTES", 1 << 13)
    monkeypatch.setattr(health, "EXAMPLES", 16)  # a look takes hardly more than the weights
    X, y = examples(1200, 64)
    stays: list[bool] = []
    room = epochs.Epochs._room
    monkeypatch.setattr(epochs.Epochs, "_room", lambda *a: (stays.append((found := room(*a))[0]), found)[1])

    def run(backend: Any) -> tuple[Any, ...]:
        keep = [bpgpu.EarlyStopping(metric) for metric in ("loss", "validation_loss", "validation_accuracy")]
        valid = X[:validation], y[:validation]
        return trained(backend, X, y, layers=(64, 300, 3), epochs=2, validation_data=valid, callbacks=keep)

    expected, refused = run(CPU), 0
    stays.clear()
    for limit in range(1_000_000, 6_000_000, 100_000):
        try:
            assert run(CUDABackend(GPU(limit=limit))) == expected, limit
        except MemoryError as error:
            assert str(error).startswith("a batch of 16 needs ") and not stays
            refused += 1
        if stays.count(True) == 2:
            break
    assert refused and stays.count(False) >= 2 and stays == sorted(stays)


# -- no room ------------------------------------------------------------------------------------------------------------


def test_a_batch_that_does_not_fit_names_one_that_does() -> None:
    """In every call that computes on a whole batch; the network is as before, and the batch that is named does fit."""
    X, y = examples(20_000, 64)
    device = GPU(limit=1_000_000)
    net = bpgpu.MLP([64, 32, 3], backend=CUDABackend(device), seed=5)
    before, used = host(net), device.used
    calls: list[Any] = [
        lambda n: net.fit(X[:n], y[:n], batch_size=n, epochs=1),
        lambda n: net.train_step(X[:n], y[:n], bpgpu.SGD(0.1)),
        lambda n: net.gradient(X[:n], y[:n]),
    ]
    for call in calls:
        with pytest.raises(MemoryError) as error:
            call(20_000)
        sentence = str(error.value)
        assert sentence.startswith("a batch of 20000 needs ") and "of GPU memory and " in sentence and "are free" in sentence
        assert host(net) == before and net.epochs_trained == 0
        fits = int(sentence.split("a batch of ")[2].split()[0])
        assert 200 < fits < 10_000
        del error
        call(fits)
        net.theta = np.frombuffer(before, np.float32)
        net.epochs_trained = 0
        net._trainers.clear()
        assert device.used == used
    net.fit(X, y, batch_size=64, epochs=1)


def host(net: bpgpu.MLP) -> bytes:
    return net.backend.to_numpy(net.theta).tobytes()


def test_a_network_that_does_not_fit() -> None:
    backend = CUDABackend(GPU(limit=100_000))
    with pytest.raises(MemoryError, match=r"^the GPU has 100 kB of memory free, and 4.04 MB more are needed$"):
        bpgpu.MLP([1000, 1000, 10], backend=backend)
    net = bpgpu.MLP([300, 60, 10], backend=backend)
    for _ in range(2):  # the velocity; the second time it is missing still
        with pytest.raises(MemoryError, match=r"25\.1 kB of memory free, and 74\.7 kB more"):
            net.fit(np.zeros((10, 300)), np.zeros(10))
    with pytest.raises(MemoryError, match="not one example would fit"):
        net.fit(np.zeros((10, 300)), np.zeros(10), optimizer=bpgpu.SGD(0.1))


def test_evaluation_and_prediction_need_room_for_a_block_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    in_blocks_of(1024, monkeypatch)
    X, y = examples(20_000, 64)
    here, there = (bpgpu.MLP([64, 32, 3], backend=b, seed=5) for b in (CPU, CUDABackend(GPU(limit=1_000_000))))
    assert here.evaluate(X, y) == there.evaluate(X, y)
    assert here.predict_proba(X).tobytes() == there.predict_proba(X).tobytes()


# -- steps in one launch ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [0, 1, 15, 16, 17, 40])
def test_a_launch_holds_several_steps(gpu: GPU, steps: int) -> None:
    """As many graphs as there are sixteens, and one for each step that is left over; the same bits as step by step."""
    numbers = np.arange(80, dtype=np.float32)
    backend = CUDABackend(gpu)
    source, order = backend.asarray(numbers), backend.asarray(np.arange(80)[::-1].copy())
    row, totals = backend.empty((2,), np.float32), backend.asarray(np.zeros(40, np.float32))
    with backend.capture() as program:
        backend.gather(source, order, row)
        backend.total(row, totals)
    for first in (0, 40 - steps):
        gpu.graphs = 0
        backend.write(totals, np.zeros(40, np.float32))
        program.run(first, steps)
        assert gpu.graphs == steps // cuda.UNROLLED + steps % cuda.UNROLLED
        expected = np.zeros(40, np.float32)
        expected[first : first + steps] = numbers[::-1].reshape(40, 2).sum(axis=1)[first : first + steps]
        assert (totals.get() == expected).all()


def test_an_epoch_is_few_launches_and_still_reports(gpu: GPU, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(epochs, "SLICE_SECONDS", 1e9)
    X, y = examples(16 * 50)
    seen: list[tuple[int, float]] = []
    trained(CUDABackend(gpu), X, y, epochs=1, callbacks=lambda p: seen.append((p.examples, p.loss)))
    assert gpu.graphs <= 20
    assert [n for n, _ in seen][-1] == 800 and len(seen) >= 2 and all(np.isfinite(loss) for _, loss in seen)


def test_ctrl_c_between_launches_leaves_a_network_that_trains_on(gpu: GPU) -> None:
    X, y = examples(16 * 50)
    net = bpgpu.MLP([6, 20, 3], backend=CUDABackend(gpu), seed=5)

    def interrupt(progress: bpgpu.Progress) -> None:
        if progress.examples > 100:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        net.fit(X, y, batch_size=16, callbacks=interrupt)
    assert np.isfinite(net.theta.get()).all()
    as_on_the_cpu(net, X, y)
    assert len(net.fit(X, y, batch_size=16, epochs=2).loss) == 2


def as_on_the_cpu(net: bpgpu.MLP, X: np.ndarray, y: np.ndarray) -> None:
    """What is computed outside of a program does not depend on what was left of one."""
    other = bpgpu.MLP(net.layers, backend=CPU, activation=net.activations)
    other.theta = net.theta.get()
    (loss, gradient), (loss_2, gradient_2) = other.gradient(X, y), net.gradient(X, y)
    assert loss == loss_2 and gradient.tobytes() == gradient_2.get().tobytes()
    b, numbers, order = net.backend, X[:3], np.array([2, 0, 1])
    b.gather(b.asarray(numbers), b.asarray(order), target := b.empty(numbers.shape, numbers.dtype))
    assert (target.get() == numbers[order]).all()


def test_ctrl_c_inside_of_a_program(gpu: GPU, monkeypatch: pytest.MonkeyPatch) -> None:
    """Between two launches of one call, when the device has counted steps already."""
    X, y = examples(16 * 50)
    net = bpgpu.MLP([6, 20, 3], backend=CUDABackend(gpu), seed=5)
    graph = cuda.CUDAProgram._graph
    launches = iter(range(20))

    def interrupted(self: cuda.CUDAProgram, steps: int) -> Any:
        if next(launches) == 7:
            raise KeyboardInterrupt
        return graph(self, steps)

    monkeypatch.setattr(cuda.CUDAProgram, "_graph", interrupted)
    monkeypatch.setattr(epochs, "SLICE_SECONDS", 1e9)
    with pytest.raises(KeyboardInterrupt):
        net.fit(X, y, batch_size=16)
    monkeypatch.undo()
    assert int(net.backend.step.get()[0]) > 0  # type: ignore[attr-defined]
    as_on_the_cpu(net, X, y)
    assert len(net.fit(X, y, batch_size=16, epochs=2).loss) == 2


def test_a_buffer_that_dies_waits_for_its_copy(gpu: GPU) -> None:
    """Copies read and write memory that is given back with the buffer."""
    buffer = CUDABackend(gpu).buffer((4, 3), np.float32)
    target, numbers = buffer.array, np.arange(12, dtype=np.float32).reshape(4, 3)
    buffer.fill(4, lambda rows: np.copyto(rows, numbers))
    assert np.isnan(target.get()).all()
    del buffer
    assert (target.get() == numbers).all()


# -- nothing is read or written beyond an array ----------------------------------------------------------------------------


EVERY_OPERATION = """
import numpy as np, bpgpu
from bpgpu.cuda import CUDABackend
from tests.emulator.gpu import GPU

launched, function = set(), CUDABackend.function
CUDABackend.function = lambda self, kernel: (launched.add(kernel.name), function(self, kernel))[1]

def backend(tile=None, split=1, kind=CUDABackend):
    made = kind(GPU(sanitize=True))
    if tile is not None:
        made.plan = lambda dtype, rows, cols, K: (tile, min(split, -(-K // 256)))
    return made

rng = np.random.default_rng(0)
def run(backend, dtype, n=300, **options):
    X, y = rng.standard_normal((n, 20)), rng.integers(0, 3, n)
    net = bpgpu.MLP([20, 17, 6, 3], activation=["gelu", "silu"], backend=backend, dtype=dtype, **options)
    adam = bpgpu.AdamW(0.01, clip_norm=0.5, max_norm=1.0, l1=1e-4)
    net.fit(X, y, epochs=1, batch_size=290, micro_batch=256, optimizer=adam, sample_weight=rng.random(n),
            validation_data=(X, y), clip_per_example=0.4)
    net.per_example_norms(X[:50], y[:50])
    net.predict_proba(X[:7])
    net.gradient(X[:21], y[:21])
"""


def sanitized(code: str) -> None:
    """Run it under AddressSanitizer and UndefinedBehaviorSanitizer."""
    from tests.emulator import sanitized_environment

    environment = sanitized_environment()
    if environment is None:
        pytest.skip("this g++ has no sanitizers")
    root = Path(__file__).parent.parent
    command = [sys.executable, "-c", f"{EVERY_OPERATION}{code}\nprint('clean')"]
    environment = {**os.environ, **environment, "PYTHONPATH": str(root)}
    result = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=900, check=False)
    assert result.stdout.strip() == "clean", result.stderr[-3000:]


def test_every_operation_under_the_sanitizers() -> None:
    """Each kernel at least once, sums cut over blocks, and every dtype."""
    sanitized("""
from bpgpu.kernels.cuda_source import FOLDER
from bpgpu.tiles import TILES
run(backend(), "float32", dropout=0.5)
run(backend(), "float64", dropout=0.5)
b = backend(TILES["float64"][-1], split=3)
X, y = rng.standard_normal((7, 600)), rng.random((7, 3))
net = bpgpu.MLP([600, 9, 3], loss="huber", output_activation="tanh", backend=b, dtype="float64")
net.train_step(X, y, bpgpu.SGD(0.1, 0.9))
fast = bpgpu.MLP([8, 12, 4], activation="tanh", backend=b, precision="fp32-tc")
fast.train_step(rng.random((5, 8)), np.arange(5) % 4, bpgpu.SGD(0.1))
b.update(*(b.asarray(np.ones(70)) for _ in range(2)), "sgd", b.asarray(np.ones(9)))
assert launched | {"team"} == {file.stem for file in FOLDER.glob("*.cu")}, launched
""")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_step_in_one_launch_under_the_sanitizers(dtype: str) -> None:
    sanitized(f"""
from bpgpu.grid import GridBackend
run(backend(kind=GridBackend), "{dtype}", dropout=0.5)
""")


@pytest.mark.exhaustive
def test_every_tile_and_loss_under_the_sanitizers() -> None:
    sanitized("""
import tests.test_cuda as T
from bpgpu.grid import GridBackend
from bpgpu.tiles import TILES, TILES_OF_GRID
for dtype in ("float32", "float64"):
    for tile in TILES[dtype]:
        b = backend(tile, split=3)
        for layers, n in [([33, 65, 70, 10], 67), ([600, 9, 4], 33), ([36, 132, 64, 12], 68), ([4, 3, 2], 600), ([1, 1, 2], 1)]:
            T.compare(b, layers, n, steps=1, dtype=dtype)
    run(backend(), dtype, n=600, dropout=[0.1, 0.2, 0.3])
    for tile in TILES_OF_GRID[dtype]:
        run(backend(tile, 3, GridBackend), dtype, n=600)
    for loss, output in (("squared_error", "tanh"), ("binary_cross_entropy", None), ("cross_entropy", None)):
        T.compare(backend(), [4, 6, 300], 11, loss=loss, output_activation=output, y=T.probabilities, dtype=dtype, steps=1)
""")
