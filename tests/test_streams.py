"""Training on data that are not in memory: the same bits wherever they are, little memory, and errors that say where."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bpgpu
from bpgpu import epochs, streams
from bpgpu.cpu import CPUBackend
from bpgpu.streams import Spool, gathered

scipy_sparse = pytest.importorskip("scipy.sparse")
pytestmark = pytest.mark.usefixtures("every_epoch_looked_at")
N, INPUTS = 500, 20


def examples(dtype: Any = np.float32) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    X = rng.standard_normal((N, INPUTS)).astype(dtype)
    X[X < 0.5] = 0
    return X, rng.integers(0, 3, N)


@pytest.fixture(params=["small slabs", "one slab"])
def slabs(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if request.param == "small slabs":
        monkeypatch.setattr(epochs, "SLAB_BYTES", 7000)
        monkeypatch.setattr(streams, "BLOCK_BYTES", 3000)
        monkeypatch.setattr(streams, "SPOOL_BYTES", 3000)
        monkeypatch.setattr(streams, "MAPPED_ROWS", 7)


def mapped(folder: Path, X: np.ndarray, mode: Any = "r") -> np.ndarray:
    np.save(folder / "X.npy", X)
    return np.load(folder / "X.npy", mmap_mode=mode)  # type: ignore[no-any-return]


def batches(X: np.ndarray, y: np.ndarray) -> Any:
    sizes = np.cumsum([0, 1, 70, 3, 200, 226])
    return ((X[a:b], y[a:b]) for a, b in pairwise(sizes))


PLACES: dict[str, Callable[[Path, np.ndarray, np.ndarray], tuple[Any, Any]]] = {
    "memory map": lambda folder, X, y: (mapped(folder, X), y),
    "map of columns": lambda folder, X, y: (mapped(folder, np.asfortranarray(X)), y),
    "view of a map": lambda folder, X, y: (np.asarray(mapped(folder, np.vstack([X, X])[:, ::-1]))[:N, ::-1], y),
    "private map": lambda folder, X, y: (mapped(folder, X, "c"), y),
    "csr": lambda folder, X, y: (scipy_sparse.csr_matrix(X), y),
    "csc array": lambda folder, X, y: (scipy_sparse.csc_array(X), y),
    "coo": lambda folder, X, y: (scipy_sparse.coo_matrix(X), y),
    "batches": lambda folder, X, y: (batches(X, y), None),
    "sparse batches": lambda folder, X, y: ([(scipy_sparse.csr_matrix(a), b) for a, b in batches(X, y)], None),
}


def trained(X: Any, y: Any, dtype: Any = np.float32, **options: Any) -> tuple[bytes, list[float], bpgpu.MLP]:
    net = bpgpu.MLP([INPUTS, 12, 3], seed=1, dtype=dtype, backend=options.pop("backend", "cpu"))
    history = net.fit(X, y, **{"epochs": 3, "batch_size": 16, "optimizer": bpgpu.SGD(0.1, 0.9), **options})
    return net.backend.to_numpy(net.theta).tobytes(), history.loss, net


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("shuffle", [True, False])
def test_the_same_bits_wherever_the_data_are(place: str, shuffle: bool, slabs: None, tmp_path: Path) -> None:
    X, y = examples()
    *expected, _ = trained(X, y, shuffle=shuffle)
    *found, _ = trained(*PLACES[place](tmp_path, X, y), shuffle=shuffle)
    assert found == expected


@pytest.mark.parametrize("source", [np.uint8, np.float64, ">f4", np.float16])
def test_other_dtypes_are_converted_as_they_are_read(source: Any, slabs: None, tmp_path: Path, dtype: np.dtype) -> None:
    X, y = examples()
    X = (X * 50).astype(source)
    assert trained(mapped(tmp_path, X), y, dtype)[:2] == trained(X, y, dtype)[:2]
    if source in (np.uint8, np.float64):
        assert trained(scipy_sparse.csr_matrix(X), y, dtype)[:2] == trained(X, y, dtype)[:2]


def test_weights_schedules_validation_and_other_targets(slabs: None, tmp_path: Path) -> None:
    X, y = examples()
    M, weight = mapped(tmp_path, X), np.random.default_rng(1).random(N)
    for options in (
        {"sample_weight": weight, "class_weight": "balanced", "label_smoothing": 0.1},
        {"optimizer": bpgpu.SGD(bpgpu.schedules.one_cycle(0.1, steps=96), 0.9)},
        {"batch_size": N}, {"batch_size": 1, "epochs": 1}, {"batch_size": N + 1},
    ):  # fmt: skip
        assert trained(M, y, **options)[:2] == trained(X, y, **options)[:2]
    histories = []
    for A in (X, M, scipy_sparse.csr_matrix(X)):
        net = bpgpu.MLP([INPUTS, 12, INPUTS], loss="squared_error", seed=1)
        histories.append(net.fit(A, X, epochs=2, validation_data=(A, X)))
    assert histories[0].validation_loss == histories[1].validation_loss == histories[2].validation_loss


def test_use_of_data_that_are_not_in_memory(slabs: None, tmp_path: Path) -> None:
    X, y = examples()
    net = trained(X, y)[2]
    for A in (mapped(tmp_path, X), scipy_sparse.csr_matrix(X)):
        np.testing.assert_array_equal(net.outputs(A), net.outputs(X))
        np.testing.assert_array_equal(net.predict(A), net.predict(X))
        assert net.evaluate(A, y) == net.evaluate(X, y) and net.gradient(A, y)[0] == net.gradient(X, y)[0]
        np.testing.assert_array_equal(net.forward(A).a[0], X)
        one, other = (bpgpu.MLP([INPUTS, 4, 3]) for _ in range(2))
        assert one.train_step(A, y, bpgpu.SGD(0.1)) == other.train_step(X, y, bpgpu.SGD(0.1))


def test_a_private_map_keeps_its_changes(tmp_path: Path) -> None:
    X, y = examples()
    M = mapped(tmp_path, X, "c")
    M[:5] = 1
    trained(M, y)
    assert (M[:5] == 1).all()


def test_a_checkpoint_goes_on_wherever_the_data_are(slabs: None, tmp_path: Path) -> None:
    """Begun in memory, gone on with on disk from the middle of an epoch."""
    X, y = examples()
    expected = trained(X, y, transform=noise)[:2]

    class Stop(bpgpu.Callback):
        saves = True

        def on_batch_end(self, progress: bpgpu.Progress) -> bool:
            if progress.epoch == 1:
                progress.save(tmp_path / "c")
            return progress.epoch == 1

    trained(X, y, transform=noise, callbacks=Stop())
    for place in PLACES.values():
        A, b = place(tmp_path, X, y)
        assert trained(A, b, transform=noise, resume=tmp_path / "c")[:2] == expected
    with pytest.raises(ValueError, match="is of another run: its data"):
        trained(mapped(tmp_path, X + 1), y, transform=noise, resume=tmp_path / "c")


def test_on_the_emulated_gpu(slabs: None, tmp_path: Path) -> None:
    from tests.emulator import available

    if available() is not None:
        pytest.skip(f"no emulator here: {available()}")
    from bpgpu.cuda import CUDABackend
    from tests.emulator.gpu import GPU, GPUArray

    X, y = examples()
    for options in ({}, {"transform": noise}):
        expected = trained(X, y, epochs=2, **options)[:2]
        for A in (mapped(tmp_path, X), scipy_sparse.csr_matrix(X), X, GPUArray(X)):
            assert trained(A, y, epochs=2, backend=CUDABackend(GPU()), **options)[:2] == expected


# -- transforms ------------------------------------------------------------------------------------------------------------


def noise(X: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return X + rng.standard_normal(X.shape, np.float32) * 0.1


def test_a_transform_sees_every_batch_in_order(slabs: None) -> None:
    X, y = examples()
    seen: list[np.ndarray] = []

    def look(batch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        if threading.current_thread() is not threading.main_thread():  # there, the health of the network is looked at
            seen.append(batch.copy())
        return batch

    assert trained(X, y, transform=look)[:2] == trained(X, y)[:2]
    assert [len(batch) for batch in seen] == ([16] * 31 + [4]) * 3
    for epoch in range(3):
        rows = np.concatenate(seen[32 * epoch : 32 * epoch + 32])
        assert sorted(map(bytes, rows)) == sorted(map(bytes, X))
        assert not np.array_equal(rows, X)


def test_transforms_are_functions_of_seed_epoch_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    X, y = examples()
    drawn: list[bytes] = []

    def look(batch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        key = rng.bytes(16)
        if threading.current_thread() is not threading.main_thread():
            drawn.append(key)
        return noise(batch, rng)

    results = [trained(X, y, transform=look, backend=CPUBackend(threads=t))[:2] for t in (1, 3)]
    monkeypatch.setattr(epochs, "SLAB_BYTES", 5000)
    results.append(trained(X, y, transform=look)[:2])
    assert results[0] == results[1] == results[2] != trained(X, y)[:2]
    assert len(drawn) == 3 * 96 and drawn[:96] == drawn[96:192] == drawn[192:] and len(set(drawn)) == 96


@pytest.mark.parametrize(
    ("transform", "message"),
    [
        (lambda X, rng: X[:, 1:], r"made a batch of shape \(16, 20\) one of \(16, 19\); expected the same shape"),
        (lambda X, rng: X / 0, r"what transform gave\[0, 0\] is (nan|inf)"),
        (lambda X, rng: 1 / len([]), "division by zero"),
    ],
)
@pytest.mark.filterwarnings("ignore:divide by zero", "ignore:invalid value")
def test_an_error_in_a_transform_ends_the_training(transform: Any, message: str) -> None:
    with pytest.raises((ValueError, ZeroDivisionError), match=message):
        trained(*examples(), transform=transform)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("bpgpu-data")]


# -- reading beside computing ----------------------------------------------------------------------------------------------


def test_the_next_slab_is_read_while_this_one_is_used(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Reading of slab 1 may begin before a step of slab 0 is taken, and in another thread."""
    monkeypatch.setattr(epochs, "SLAB_BYTES", 16 * (4 * INPUTS + 8) * 4)
    read: list[int] = []
    reading = threading.Event()
    fill = epochs.Epochs._fill

    def look(self: epochs.Epochs, number: int) -> None:
        assert threading.current_thread() is not threading.main_thread()
        fill(self, number)
        read.append(number)
        reading.set()

    monkeypatch.setattr(epochs.Epochs, "_fill", look)
    seen: list[int] = []

    def callback(progress: bpgpu.Progress) -> None:
        if not seen:
            assert reading.wait(60)
            while len(read) < 2:  # slab 1 comes although nothing but this callback goes on
                threading.Event().wait(0.01)
        seen.append(progress.examples)

    X, y = examples()
    trained(mapped(tmp_path, X), y, epochs=1, callbacks=callback)
    assert read == list(range(8)) and seen[-1] == N


@pytest.mark.parametrize("place", ["memory map", "csr"])
def test_divergence_is_found_while_no_slab_is_being_filled(place: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The steps that are taken once more have the rows that they had, and a transform never runs in two threads at once."""
    monkeypatch.setattr(epochs, "SLAB_BYTES", 7000)  # four batches
    X, y = examples()
    X[160:] *= 1e30
    running, most, lock = [0], [0], threading.Lock()

    def slow(batch: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        with lock:
            running[0] += 1
            most[0] = max(most[0], running[0])
        time.sleep(0.005)  # the steps of a slab are faster
        with lock:
            running[0] -= 1
        return batch

    said = []
    for data, transform in ((X, None), (PLACES[place](tmp_path, X, y)[0], slow)):
        net = bpgpu.MLP([INPUTS, 12, 3], seed=1)
        with pytest.raises(bpgpu.Diverged, match=r"in step 1\d of epoch 1, first in the (outputs|weights) of layer") as error:
            net.fit(data, y, batch_size=16, shuffle=False, optimizer=bpgpu.SGD(1e8), transform=transform)
        said.append((str(error.value), net.theta.tobytes()))
    assert said[0] == said[1] and most[0] == 1


def test_no_thread_is_left(tmp_path: Path) -> None:
    X, y = examples()
    trained(mapped(tmp_path, X), y, callbacks=lambda progress: True)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("bpgpu-data")]


# -- memory ----------------------------------------------------------------------------------------------------------------

FOOTPRINT = """
import os, resource, sys, numpy as np, bpgpu
from bpgpu import data as data_module, epochs, streams, tables
kind, folder, shrunk = sys.argv[1:]
for module in (data_module, epochs, streams, tables):
    for name in {"BLOCK_BYTES", "SLAB_BYTES", "SPOOL_BYTES"} & set(vars(module)):
        setattr(module, name, getattr(module, name) // int(shrunk))
net = bpgpu.MLP([1024, 8, 3])
if kind == "memory map":
    import bpgpu.streams
    n = 1 << 18
    X = np.lib.format.open_memmap(folder + "/X.npy", "w+", np.float32, (n, 1024))  # a file with a hole: it takes no room
    X = np.load(folder + "/X.npy", mmap_mode="r")
    data = X, np.arange(n) % 3
elif kind == "sparse":
    import scipy.sparse
    n = 1 << 18
    data = scipy.sparse.csr_matrix((np.ones(n), np.arange(n) % 1024, np.arange(n + 1)), (n, 1024)), np.arange(n) % 3
elif kind == "batches":
    n = 1 << 17
    data = ((np.full((512, 1024), i, np.float32), np.arange(512) % 3) for i in range(n // 512)), None
elif kind == "parquet":
    import pyarrow as pa, pyarrow.parquet as pq
    n = 1 << 17
    table = pa.table({str(i): np.zeros(2048, np.float32) for i in range(1024)} | {"label": np.arange(2048) % 3})
    with pq.ParquetWriter(folder + "/X.parquet", table.schema) as file:
        for _ in range(n // 2048):
            file.write_table(table)
    small = table.slice(0, 100)
    pq.write_table(small, folder + "/small.parquet")
    bpgpu.load_data(folder + "/small.parquet")
elif kind == "csv":
    n, line = 1 << 13, ",".join(["0"] * 1024)
    for name, rows in (("small", 9), ("X", n)):
        with open(f"{folder}/{name}.csv", "w") as file:
            for i in range(rows):
                print(f"{line},{i % 3}", file=file)
    bpgpu.load_data(folder + "/small.csv")
elif kind == "npz":
    n = 1 << 17
net.fit(np.zeros((300, 1024), np.float32), np.arange(300) % 3, epochs=1)
def peak():
    if not os.path.exists("/proc/self/status"):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    with open("/proc/self/status") as file:  # Linux: there ru_maxrss counts the memory of the process that has started this one
        return 1024 * int(next(line for line in file if line.startswith("VmHWM")).split()[1])
before = peak()
if kind in ("parquet", "csv", "npz"):
    read = bpgpu.load_data(f"{folder}/X.{kind}")
    data = read.X, read.y
net.fit(*data, epochs=1, batch_size=512)
print(n * 4096, peak() - before)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="no peak of resident memory by this means")
@pytest.mark.parametrize(
    ("kind", "shrunk"), [("memory map", 1), ("sparse", 1), ("batches", 1), ("parquet", 1), ("npz", 1), ("csv", 16)]
)
def test_footprint(kind: str, shrunk: int, tmp_path: Path) -> None:
    """The peak of resident memory grows by two slabs of 64 MiB and what they are made of, however large the data are.

    For CSV, which takes its time, all sizes are a sixteenth.
    """
    if kind == "parquet":
        pytest.importorskip("pyarrow")
    if kind == "npz":
        np.savez(tmp_path / "X.npz", X=np.zeros((1 << 17, 1024), np.float32), y=np.arange(1 << 17) % 3)
    result = subprocess.run(
        [sys.executable, "-c", FOOTPRINT, kind, str(tmp_path), str(shrunk)],
        capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    size, grown = map(int, result.stdout.split())
    most = 2**28 if shrunk == 1 else 3 * 2**23  # 24 MiB: beside what grows with the sizes there is what Python itself takes
    assert size >= 2**29 // shrunk and grown < most, f"{kind}: {grown >> 20} MiB for {size >> 20} MiB of data"


# -- what arrives in pieces ------------------------------------------------------------------------------------------------


def test_a_spool(monkeypatch: pytest.MonkeyPatch) -> None:
    X = np.random.default_rng(0).random((100, 7))
    for limit, is_mapped in ((1 << 20, False), (2000, True), (0, True)):
        monkeypatch.setattr(streams, "SPOOL_BYTES", limit)
        spool = Spool()
        for start in range(0, 100, 13):
            spool.append(X[start : start + 13])
        found = spool.array()
        np.testing.assert_array_equal(found, X)
        assert isinstance(found, np.memmap) == is_mapped


def test_a_full_disk_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(streams, "SPOOL_BYTES", 0)
    monkeypatch.setattr(streams.tempfile, "TemporaryFile", full)
    with pytest.raises(OSError, match=r"has no room for the data \(.*No space left.*\); the variable TMPDIR names another"):
        trained(batches(*examples()), None)


def test_batches_of_lists_and_frames() -> None:
    pandas = pytest.importorskip("pandas")
    X, y = examples()
    parts = [(X[:100].tolist(), y[:100].tolist()), [pandas.DataFrame(X[100:]), pandas.Series(y[100:])]]
    assert trained(parts, None)[:2] == trained(X, y)[:2]
    A, b = gathered(iter(parts), dtype="float32")
    np.testing.assert_array_equal(A, X)
    np.testing.assert_array_equal(b, y)


def test_batches_whose_arrays_are_used_again() -> None:
    X, y = examples()
    A, b = np.empty((100, INPUTS), np.float32), np.empty(100, int)

    def reused() -> Any:
        for start in range(0, N, 100):
            A[:], b[:] = X[start : start + 100], y[start : start + 100]
            yield A, b

    assert trained(reused(), None)[:2] == trained(X, y)[:2]


X0, Y0 = examples()
NAN = X0.copy()
NAN[321, 7] = np.nan
WRONG: dict[str, tuple[Callable[[Path], Any], type[Exception], str]] = {
    "no y": (
        lambda _: (X0, None),
        TypeError,
        r"y is a NoneType; X alone must be an iterable of batches \(X, y\), not a ndarray",
    ),
    "number": (lambda _: (3, None), TypeError, r"y is a NoneType; .* not a int"),
    "no batch": (lambda _: (iter([]), None), ValueError, r"there is no batch; expected an iterable of pairs"),
    "no pair": (lambda _: ([X0], None), ValueError, r"batch 0 is a ndarray; expected a pair \(X, y\)"),
    "three": (lambda _: ([(X0, Y0, Y0)], None), ValueError, r"batch 0 is a tuple; expected a pair"),
    "columns": (lambda _: ([(X0, Y0), (X0[:, 1:], Y0)], None), ValueError, r"X of batch 1 has 19 columns .*; expected 20"),
    "lengths": (lambda _: ([(X0, Y0), (X0, Y0[1:])], None), ValueError, r"y of batch 1 has shape \(499,\), but X has 500 rows"),
    "nan in a batch": (lambda _: ([(X0, Y0), (NAN, Y0)], None), ValueError, r"X of batch 1\[321, 7\] is nan"),
    "nan in a map": (lambda folder: (mapped(folder, NAN), Y0), ValueError, r"X\[321, 7\] is nan; expected finite numbers"),
    "nan, sparse": (lambda _: (scipy_sparse.csr_matrix(NAN), Y0), ValueError, r"X\[321, 7\] is nan"),
    "large": (
        lambda folder: (mapped(folder, X0.astype(float) * 1e300), Y0),
        ValueError,
        r"X\[0, 2\] is .*, too large for float32",
    ),
    "columns of a map": (lambda folder: (mapped(folder, X0[:, 1:]), Y0), ValueError, r"X has 19 columns .*; expected 20"),
    "columns, sparse": (lambda _: (scipy_sparse.csr_matrix(X0[:, 1:]), Y0), ValueError, r"X has 19 columns .*; expected 20"),
    "complex": (lambda _: (scipy_sparse.csr_matrix(X0 * 1j), Y0), TypeError, r"X is a sparse matrix of complex64"),
    "objects": (lambda folder: (mapped(folder, X0.astype("M8[s]")), Y0), TypeError, r"X holds dates"),
    "1-D": (lambda folder: (mapped(folder, X0[0]), Y0), ValueError, r"X has shape \(20,\); expected 2-D"),
    "labels": (lambda folder: (mapped(folder, X0), Y0[1:]), ValueError, r"y has 499 entries but X has 500 rows"),
}


@pytest.mark.parametrize("case", WRONG)
def test_refused_before_any_work(case: str, slabs: None, tmp_path: Path) -> None:
    make, kind, message = WRONG[case]
    net = bpgpu.MLP([INPUTS, 12, 3], seed=1)
    before = net.theta.tobytes()
    X0_large = make(tmp_path)
    with pytest.raises(kind, match=message) as error:
        net.fit(*X0_large)
    assert "\n" not in str(error.value) and net.theta.tobytes() == before and net.epochs_trained == 0
