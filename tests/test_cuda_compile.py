"""Every kernel compiles for every architecture with NVIDIA's own compiler, which needs no GPU: registers, spills, memory.

Skipped where CuPy and NVRTC are not installed; the extra `dev` brings them.  The default run takes each float32 kernel to one
of the architectures, `python -m pytest -m exhaustive -s tests/test_cuda_compile.py` all to all, and prints the table.
"""

from __future__ import annotations

import importlib.util
import re
from itertools import cycle

import pytest

from bpgpu import ACTIVATIONS, cuda
from bpgpu.kernels.cuda_source import FOLDER, source
from bpgpu.kernels.names import LOSSES, RULES
from bpgpu.tiles import TILES

with_cupy = pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")
ARCHITECTURES = "sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100"
MOST_REGISTERS = 255  # times 256 threads is what a multiprocessor has
STATIC_SHARED = 48 * 1024

HEAVIEST = {"dense_forward": "gelu", "hidden_delta": "gelu", "dense_gradient": "adam"}
Job = tuple[str, str | None, tuple[str, ...], dict[str, int]]


def jobs(dtype: str) -> list[Job]:
    """Kernel, dtype, options, sizes: every tile with the heaviest of its options, every option with the smallest tile."""
    small = {**TILES[dtype][-1].macros, "ALIGNED": 1}
    found: list[Job] = []
    for name, option in HEAVIEST.items():
        tiles = [{**tile.macros, "ALIGNED": aligned} for tile in TILES[dtype] for aligned in (1, 0)]
        found += [(name, dtype, (option,), tile) for tile in tiles]
    for name in ("dense_forward", "hidden_delta"):
        found += [(name, dtype, (f,), small) for f in ACTIVATIONS if f != HEAVIEST[name]]
    rules = "store", "add", *RULES
    found += [("dense_gradient", dtype, (rule,), small) for rule in rules if rule != HEAVIEST["dense_gradient"]]
    found += [("column_sum", dtype, (rule,), {"THREADS": cuda.THREADS["column_sum"]}) for rule in rules]
    found += [("update", dtype, (rule,), {"THREADS": cuda.THREADS["update"]}) for rule in rules if rule != "store"]
    for threads in (cuda.THREADS["activate"], cuda.WIDE_ROW):
        found += [("activate", dtype, (f,), {"THREADS": threads}) for f in (*ACTIVATIONS, "softmax")]
        outputs = [("cross_entropy", "softmax", y) for y in ("labels", "targets")]
        outputs += [("binary_cross_entropy", "sigmoid", "targets")]
        outputs += [(loss, "gelu", "targets") for loss in LOSSES if not loss.endswith("cross_entropy")]
        found += [("output_delta", dtype, options, {"THREADS": threads}) for options in outputs]
    if dtype == "float32":
        found += [("amplify", dtype, (f,), {"THREADS": cuda.THREADS["amplify"]}) for f in ACTIVATIONS]
        found += [(name, None, (), {"THREADS": cuda.THREADS["gather"]}) for name in ("gather", "advance")]
        found += [("parts", dtype, (), {"THREADS": cuda.THREADS["parts"]})]
    plain = "dropout", "squares", "clip", "max_norm", "total", "example_norms", "clip_examples"
    found += [(name, dtype, (), {"THREADS": cuda.THREADS[name]}) for name in plain]
    return found


EVERY = jobs("float32") + jobs("float64")


def label(job: Job) -> str:
    name, dtype, options, sizes = job
    return "_".join((name, dtype or "bytes", *options, *(str(sizes[s]) for s in ("BM", "ALIGNED", "THREADS") if s in sizes)))


def check(job: Job, architecture: str) -> dict[str, int]:
    """Registers, spilled bytes and static shared memory, as ptxas reports them, within their bounds."""
    from cupy.cuda import nvrtc

    name, dtype, options, sizes = job
    text, entry = source(name, dtype, options, **sizes)
    program = nvrtc.createProgram(text, f"{entry}.cu", (), ())
    try:
        nvrtc.compileProgram(program, (*cuda.OPTIONS, f"-arch={architecture}", "--ptxas-options=-v"))
    except nvrtc.NVRTCError:
        raise AssertionError(f"{label(job)} for {architecture}: {nvrtc.getProgramLog(program)[:2000]}") from None
    finally:
        log = nvrtc.getProgramLog(program)
        nvrtc.destroyProgram(program)
    assert "warning" not in log, f"{label(job)} for {architecture}: {log}"

    def number(pattern: str) -> int:
        return sum(map(int, re.findall(pattern, log)))

    found = {
        "registers": number(r"Used (\d+) registers"),
        "spilled": number(r"(\d+) bytes spill (?:stores|loads)"),
        "shared": number(r"(\d+) bytes smem"),
    }
    assert 0 < found["registers"] <= MOST_REGISTERS, (label(job), architecture, found)
    assert found["spilled"] == 0 and found["shared"] <= STATIC_SHARED, (label(job), architecture, found)
    return found


def test_no_kernel_is_forgotten() -> None:
    assert {job[0] for job in EVERY} == {file.stem for file in FOLDER.glob("*.cu")}


@with_cupy
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_compile_and_fit(architecture: str) -> None:
    turn = [job for job, its_own in zip(jobs("float32"), cycle(ARCHITECTURES), strict=False) if its_own == architecture]
    assert len(turn) > 15
    for job in turn:
        check(job, architecture)


@with_cupy
@pytest.mark.exhaustive
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_on_every_architecture(architecture: str) -> None:
    print(f"\n{architecture:8s} {'kernel':60s} registers  shared  spilled")
    for job in EVERY:
        found = check(job, architecture)
        print(f"{'':8s} {label(job):60s} {found['registers']:9d} {found['shared']:7d} {found['spilled']:8d}")
