"""The CPU backend as a guest of the machine: threads, first use, and kernels kept on disk."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bpgpu import kernels, team
from bpgpu.blocks import product_block, thin_block
from bpgpu.cpu import CPUBackend, CPUProgram
from bpgpu.kernels import compiler
from bpgpu.kernels.machine import CHUNK, MAX_BLOCK, MAX_COLS, MAX_ROWS, THIN_PART, THIN_VECTORS, Lanes
from bpgpu.team import thread_count

ROOT = Path(__file__).parent.parent
TRAIN = """
import sys, bpgpu, hashlib, numpy as np
net = bpgpu.MLP([5, 8, 3], seed=1)
X = np.random.default_rng(0).standard_normal((20, 5)).astype("f4")
for _ in range(3):
    net.train_step(X, np.arange(20) % 3, OPTIMIZER)
print(hashlib.sha256(net.theta.tobytes()).hexdigest(), "numba" in sys.modules)
""".replace("net =", "OPTIMIZER = bpgpu.SGD(0.1)\nnet =")


def python(code: str, folder: Path = ROOT, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PYTHONPATH": str(folder), **environment}
    return subprocess.run(
        [sys.executable, "-c", code], env=variables, cwd=folder, capture_output=True, text=True, check=True, timeout=120
    )


# -- threads -------------------------------------------------------------------------------------------------------------


SIZES = st.integers(1, 5000)
MACHINES = [(16, 8, 2), (8, 6, 2), (4, 6, 2), (4, 6, 4)]  # AVX-512, AVX2, SSE2, NEON: lanes of float32, rows, vectors


@given(
    st.sampled_from(["dense_forward", "hidden_delta", "dense_gradient"]),
    SIZES, SIZES, SIZES, st.integers(1, 64), st.sampled_from(MACHINES), st.sampled_from([1, 2]),
)  # fmt: skip
def test_a_block_of_a_product_fits_into_its_threads_memory(
    name: str, M: int, N: int, K: int, threads: int, machine: tuple[int, int, int], words: int
) -> None:
    lanes, rows, vectors = machine
    V = Lanes(f"float{32 * words}", lanes // words, rows, vectors)
    block_rows, block_cols = product_block(name, M, N, K, V, 6 * threads)
    assert 1 <= block_rows <= MAX_ROWS
    assert 1 <= block_cols <= MAX_COLS
    assert block_cols % V.lanes == 0  # the vectors of a row are whole
    assert block_rows % rows == 0  # and so are the tiles of a column
    assert block_rows * block_cols <= MAX_BLOCK


@given(SIZES, st.integers(1, 20), st.booleans(), st.integers(1, 64), st.sampled_from(MACHINES), st.sampled_from([1, 2]))
def test_so_does_a_block_of_few_rows(
    N: int, chunks: int, transposed: bool, threads: int, machine: tuple[int, int, int], words: int
) -> None:
    lanes, rows, vectors = machine
    V = Lanes(f"float{32 * words}", lanes // words, rows, vectors)
    M, cols = thin_block(rows - 1, N, V, transposed, chunks, 6 * threads)
    assert cols >= 1 and cols % (THIN_VECTORS * V.lanes) == 0  # the tiles of a row are whole
    assert 2 * M * cols <= MAX_BLOCK  # the sums of a chunk are beside it
    assert THIN_PART * cols <= CHUNK * MAX_COLS  # the panel of a transposed operand


def test_thread_count_respects_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NUMBA_NUM_THREADS", "3")
    assert thread_count() == 3 == CPUBackend().threads
    for wrong in ("0", "-1", "many", "1000000"):
        monkeypatch.setenv("NUMBA_NUM_THREADS", wrong)
        with pytest.raises(ValueError, match=f"NUMBA_NUM_THREADS is '{wrong}'; expected a positive integer"):
            thread_count()


QUOTAS = {  # /proc/self/cgroup, files below /sys/fs/cgroup, how many threads are left of 8 CPUs
    "no Linux": (None, {}, 8),
    "none": ("0::/a\n", {"a/cpu.max": "max 100000"}, 8),
    "of its own": ("0::/a/b\n", {"a/b/cpu.max": "150000 100000", "cpu.max": "max 100000"}, 2),
    "of a group above": ("0::/a/b/c\n", {"a/b/c/cpu.max": "max 100000", "a/cpu.max": "300000 100000"}, 3),
    "the smallest": ("0::/a/b\n", {"a/b/cpu.max": "500000 100000", "a/cpu.max": "200000 100000"}, 2),
    "in a container": ("0::/\n", {"cpu.max": "100000 100000"}, 1),
    "of a path that is not here": ("0::/../b\n", {"cpu.max": "100000 100000"}, 1),
    "damaged": ("0::/\n", {"cpu.max": ""}, 8),
    "version 1": (
        "3:memory:/m\n2:cpu,cpuacct:/a/b\n1:name=systemd:/\n",
        {"cpu/a/b/cpu.cfs_quota_us": "-1\n", "cpu/a/b/cpu.cfs_period_us": "100000\n",
         "cpu/a/cpu.cfs_quota_us": "250000\n", "cpu/a/cpu.cfs_period_us": "100000\n"},
        3,
    ),
    "both versions": (
        "1:cpu:/docker/x\n0::/\n", {"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000", "cpu.max": "max 1"}, 1
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", QUOTAS)
def test_thread_count_respects_the_quotas(case: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own, files, expected = QUOTAS[case]
    monkeypatch.delenv("NUMBA_NUM_THREADS", raising=False)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(team, "_GROUPS", tmp_path / "groups")
    monkeypatch.setattr(team, "_OWN_GROUPS", tmp_path / "own")
    if own is not None:
        (tmp_path / "own").write_text(own)
    for name, text in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(text)
    assert thread_count() == expected


@pytest.mark.parametrize("threads", [0, -2, 1.5, "2", 10**6])
def test_threads_must_be_a_positive_integer(threads: object) -> None:
    with pytest.raises(ValueError, match="expected a positive integer"):
        CPUBackend(threads)  # type: ignore[arg-type]


def step(backend: CPUBackend) -> np.ndarray:
    X, W = np.ones((300, 70), np.float32), np.ones((70, 90), np.float32)
    return np.asarray(backend.dense_forward(X, W, np.zeros(90, np.float32), "relu"))


def test_nothing_spins_while_idle() -> None:
    backend = CPUBackend(threads=3)
    step(backend)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.4)
    assert time.process_time() - before < 0.1


def test_threads_leave_with_their_backend() -> None:
    for _ in range(5):
        before = set(threading.enumerate())
        backend = CPUBackend(threads=3)
        assert (step(backend) == 70).all()
        mine = set(threading.enumerate()) - before
        assert len(mine) == 2
        del backend
        for thread in mine:
            thread.join(timeout=10)
            assert not thread.is_alive()


def test_a_program_knows_how_many_steps_it_has() -> None:
    backend = CPUBackend(threads=1)
    source, target, losses = np.arange(12.0), np.empty(3), np.empty(2)
    with backend.capture() as program:
        backend.gather(source, np.arange(12), target)
        backend.total(target, losses)
    program.run(0, 2)
    assert losses.tolist() == [3, 12] and target.tolist() == [3, 4, 5]
    for first, steps in ((0, 3), (2, 1), (-1, 1), (1, -1)):
        with pytest.raises(ValueError, match="of a program that has 2"):
            program.run(first, steps)


def test_every_item_of_a_long_stage_is_done_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as a matrix of one column and 2^28 rows has."""

    def count(job: int, scratch: int, step: int, item: int) -> None:
        add(job, 1)
        add(job + 8, item)

    from bpgpu.kernels.team import atomic_add as add

    monkeypatch.setitem(kernels._found, ("count", ""), compiler._load(*compiler._compile(count)))
    backend, items, found = CPUBackend(threads=1), 2**25 + 66, np.zeros(2, np.int64)
    program = CPUProgram(backend)
    program.add(("count", ""), found, items)
    thread = threading.Thread(target=program.run, daemon=True)
    thread.start()
    thread.join(timeout=100)
    assert not thread.is_alive()
    assert found.tolist() == [items, items * (items - 1) // 2]


def test_captures_do_not_nest_and_end_with_their_block() -> None:
    backend = CPUBackend(threads=1)
    with backend.capture(), pytest.raises(RuntimeError, match="do not nest"), backend.capture():
        pass
    with pytest.raises(KeyError), backend.capture():
        raise KeyError
    assert (step(backend) == 70).all()


# -- first use -----------------------------------------------------------------------------------------------------------


def test_importing_is_light() -> None:
    heavy = "numba", "llvmlite", "safetensors", "rich", "cupy", "pandas"
    out = python(f"import sys, bpgpu; print([m for m in {heavy} if m in sys.modules])").stdout
    assert out.strip() == "[]"


Compiled = tuple[Path, subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> Compiled:
    """The folder of all kernels that TRAIN needs, and what the process that compiled them printed."""
    folder = tmp_path_factory.mktemp("compiled") / "kernels"
    return folder, python(TRAIN, BPGPU_CACHE_DIR=str(folder), NUMBA_NUM_THREADS="2")


def test_second_process_compiles_nothing_and_says_nothing(compiled: Compiled) -> None:
    folder, first = compiled
    second = python(TRAIN, BPGPU_CACHE_DIR=str(folder))
    assert first.stderr.count("compiling CPU kernels") == 1 and str(folder) in first.stderr
    assert second.stderr == ""
    assert first.stdout.split()[1] == "True" and second.stdout.split()[1] == "False"  # Numba imported?
    assert first.stdout.split()[0] == second.stdout.split()[0]


def test_a_process_beside_compiles_the_product(tmp_path: Path, compiled: Compiled) -> None:
    """On several threads; and where another process fails, all is compiled in this one."""
    code = f"""
import subprocess, sys
started = []
class Popen(subprocess.Popen):
    def __init__(self, command, **options):
        started.append("product" in command[-1])
        super().__init__(command, **options)
subprocess.Popen = Popen
sys.executable = {{executable}}
from bpgpu.kernels import compiler
compiler.LONGEST = {{longest}}
{TRAIN}
print(started)
"""
    failing, hanging = tmp_path / "python-1", tmp_path / "python-2"
    for file, does in ((failing, "exit 1"), (hanging, "exec sleep 1000")):
        file.write_text(f"#!/bin/sh\n{does}\n")
        file.chmod(0o700)
    cases = {  # sys.executable, threads, and what is started
        "two": ("sys.executable", "2", "[True]"), "one thread": ("sys.executable", "1", "[]"),
        "failing": (repr(str(failing)), "2", "[True]"), "hanging": (repr(str(hanging)), "2", "[True]"),
    }  # fmt: skip
    for name, (executable, threads, expected) in cases.items():
        folder = shutil.copytree(compiled[0], tmp_path / name)
        missing = [file for file in folder.iterdir() if re.search(rb"product7product|4team6leader", file.read_bytes())]
        assert len(missing) == 2
        for file in missing:  # the other kernels are not compiled four times
            file.unlink()
        cache = {"BPGPU_CACHE_DIR": str(folder), "NUMBA_NUM_THREADS": threads}
        done = python(code.format(executable=executable, longest=2 if name == "hanging" else 60), **cache)
        trained, started = done.stdout.splitlines()
        assert done.stderr.count("compiling") == 1 and started == expected, name
        assert python(TRAIN, **cache).stderr == ""  # nothing is left to compile
        assert trained.split()[0] == compiled[1].stdout.split()[0]


@pytest.mark.parametrize(("executable", "tried"), [(None, 0), ("", 0), ("/bin/false", 0), ("/no/python", 1)])
def test_where_another_process_cannot_be_had(executable: str | None, tried: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a program that Python is embedded in: none is started, and nothing is lost."""
    commands: list[str] = []
    start = subprocess.Popen

    def popen(command: list[str], **options: Any) -> Any:
        commands.append(command[0])
        return start(command, **options)

    monkeypatch.setattr(sys, "executable", executable)
    monkeypatch.setattr(subprocess, "Popen", popen)
    with compiler.elsewhere([("product", "float32")]):
        assert commands == [executable] * tried


def test_damaged_kernels_are_compiled_again(tmp_path: Path, compiled: Compiled) -> None:
    folder = shutil.copytree(compiled[0], tmp_path / "kernels")
    files = sorted(folder.iterdir(), key=lambda file: file.stat().st_size)[:-1]  # the largest takes longest to compile
    assert len(files) >= 4
    for i, file in enumerate(files):
        content = file.read_bytes()
        file.write_bytes((b"", content[: len(content) // 2], content[:-1] + bytes([content[-1] ^ 1]), b"x" * 100)[i % 4])
    again = python(TRAIN, BPGPU_CACHE_DIR=str(folder))
    assert again.stdout.split()[0] == compiled[1].stdout.split()[0] and "compiling" in again.stderr
    assert python(TRAIN, BPGPU_CACHE_DIR=str(folder)).stderr == ""


def test_ctrl_c_while_compiling_comes_after_it(tmp_path: Path) -> None:
    """Within it comes to functions that LLVM calls back, where Python can but print it."""
    code = """
import signal
from bpgpu.kernels import compiler, disk

def make():
    signal.raise_signal(signal.SIGINT)
    def nothing(number): pass
    return nothing

try:
    compiler.address("nothing", make)
except KeyboardInterrupt:
    kept = len(list(disk.cache_folder().glob("*.kernel")))
    print("interrupted", kept, signal.getsignal(signal.SIGINT) is signal.default_int_handler)
"""
    assert python(code, BPGPU_CACHE_DIR=str(tmp_path)).stdout.split() == ["interrupted", "1", "True"]


def test_no_writable_folder_is_said_and_works(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    result = python(TRAIN, BPGPU_CACHE_DIR=str(tmp_path / "file"))
    assert "not kept" in result.stderr


def test_an_edited_kernel_is_compiled_again(tmp_path: Path, compiled: Compiled) -> None:
    copy = tmp_path / "copy"
    for name in ("bpgpu", "kernels"):
        shutil.copytree(ROOT / name, copy / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    cache = {"BPGPU_CACHE_DIR": str(shutil.copytree(compiled[0], tmp_path / "kernels"))}
    first = python(TRAIN, copy, **cache)
    assert first.stderr == ""  # the same texts elsewhere
    update = copy / "kernels" / "update.py"
    text = update.read_text()
    assert text.count("fma(minus_rate, u,") == 1
    update.write_text(text.replace("fma(minus_rate, u,", "fma(minus_rate, -u,"))
    second = python(TRAIN, copy, **cache)
    assert "compiling" in second.stderr and second.stdout != first.stdout
    update.write_text(text)
    third = python(TRAIN, copy, **cache)
    assert third.stderr == "" and third.stdout.split()[0] == first.stdout.split()[0]
