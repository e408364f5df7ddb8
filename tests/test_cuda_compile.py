"""Every kernel compiles for every architecture with NVIDIA's own compiler, which needs no GPU: registers, spills, memory.

Skipped where CuPy and NVRTC are not installed; the extra `dev` brings them.  The default run takes each float32 kernel to one
of the architectures, `python -m pytest -m exhaustive -s tests/test_cuda_compile.py` all to all, and prints the table.
"""

from __future__ import annotations

import importlib.util
import re
from itertools import cycle

import pytest

from bpgpu import ACTIVATIONS, cuda, grid
from bpgpu.kernels.cuda_source import FOLDER, Kernel, source, team_source
from bpgpu.kernels.names import LOSSES, RULES
from bpgpu.tiles import TILES, TILES_OF_GRID

with_cupy = pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")
ARCHITECTURES = "sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100"
MOST_REGISTERS = 255  # times 256 threads is what a multiprocessor has
SPILLED = {("team_float32_relu_sgd", "sm_100"): 24, ("team_float32_gelu_adam", "sm_100"): 344}  # bytes; all others: none
STATIC_SHARED = 48 * 1024

HEAVIEST = {"dense_forward": "gelu", "hidden_delta": "gelu", "dense_gradient": "adam"}


def jobs(dtype: str) -> list[Kernel]:
    """Every tile with the heaviest of its options, every option with the smallest tile."""
    small = {**TILES[dtype][-1].macros, "ALIGNED": 1}
    found: list[tuple[str, str | None, tuple[str, ...], dict[str, int]]] = []
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
        found += [("gather", None, (), {"THREADS": cuda.THREADS["gather"]}), (*cuda.ADVANCE[:3], dict(cuda.ADVANCE.sizes))]
        found += [("parts", dtype, (), {"THREADS": cuda.THREADS["parts"]})]
    plain = "dropout", "squares", "clip", "max_norm", "total", "example_norms", "clip_examples"
    found += [(name, dtype, (), {"THREADS": cuda.THREADS[name]}) for name in plain]
    return [Kernel(*job, tuple(sizes.items())) for *job, sizes in found]


def teams(dtype: str) -> dict[str, list[Kernel]]:
    """What steps of three layers are made of, with every tile that a grid's blocks have the threads for."""
    tiles = [tile.macros for tile in TILES_OF_GRID[dtype]]

    def step(f: str, rule: str, *more: str) -> list[Kernel]:
        products = [("dense_forward", f), ("dense_forward", "identity"), ("hidden_delta", f), ("dense_gradient", rule)]
        found = [(name, (option,), {**tile, "ALIGNED": 1}) for name, option in products for tile in tiles]
        found += [(name, (), {"THREADS": grid.THREADS}) for name in ("gather", "total", *more)]
        found += [("output_delta", ("cross_entropy", "softmax", "labels"), {"THREADS": grid.THREADS})]
        return [Kernel(name, None if name == "gather" else dtype, o, tuple(sizes.items())) for name, o, sizes in found]

    return {
        f"team_{dtype}_relu_sgd": step("relu", "sgd"),
        f"team_{dtype}_gelu_adam": step(
            "gelu", "adam", "dropout", "example_norms", "clip_examples", "squares", "clip", "max_norm"
        ),
    }


EVERY = {kernel.entry: (source(kernel), kernel.entry) for kernel in jobs("float32") + jobs("float64")}
TEAMS = {label: (team_source(kernels), "team") for dtype in TILES for label, kernels in teams(dtype).items()}


def check(label: str, text: str, entry: str, architecture: str) -> dict[str, int]:
    """Registers, spilled bytes and static shared memory, as ptxas reports them, within their bounds."""
    from cupy.cuda import nvrtc

    program = nvrtc.createProgram(text, f"{entry}.cu", (), ())
    try:
        nvrtc.compileProgram(program, (*cuda.OPTIONS, f"-arch={architecture}", "--ptxas-options=-v"))
    except nvrtc.NVRTCError:
        raise AssertionError(f"{label} for {architecture}: {nvrtc.getProgramLog(program)[:2000]}") from None
    finally:
        log = nvrtc.getProgramLog(program)
        nvrtc.destroyProgram(program)
    assert "warning" not in log, f"{label} for {architecture}: {log}"

    def number(pattern: str) -> int:
        return sum(map(int, re.findall(pattern, log)))

    found = {
        "registers": number(r"Used (\d+) registers"),
        "spilled": number(r"(\d+) bytes spill (?:stores|loads)"),
        "shared": number(r"(\d+) bytes smem"),
    }
    assert 0 < found["registers"] <= MOST_REGISTERS, (label, architecture, found)
    assert found["shared"] <= STATIC_SHARED, (label, architecture, found)
    assert found["spilled"] <= SPILLED.get((label, architecture), 0), (label, architecture, found)
    return found


def test_no_kernel_is_forgotten() -> None:
    assert {kernel.name for kernel in jobs("float32")} | {"team"} == {file.stem for file in FOLDER.glob("*.cu")}


@with_cupy
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_kernels_compile_and_fit(architecture: str) -> None:
    """Every other kernel on one of the architectures; -m exhaustive has all of them on all."""
    turn = [k.entry for k, its_own in zip(jobs("float32")[::2], cycle(ARCHITECTURES), strict=False) if its_own == architecture]
    assert len(turn) > 7
    for label in turn:
        check(label, *EVERY[label], architecture)


@with_cupy
@pytest.mark.parametrize(("label", "architecture"), [("team_float32_relu_sgd", "sm_90"), ("team_float64_relu_sgd", "sm_75")])
def test_a_step_in_one_kernel_compiles_and_fits(label: str, architecture: str) -> None:
    check(label, *TEAMS[label], architecture)


@with_cupy
@pytest.mark.exhaustive
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_on_every_architecture(architecture: str) -> None:
    print(f"\n{architecture:8s} {'kernel':60s} registers  shared  spilled")
    for label, kernel in (EVERY | TEAMS).items():
        found = check(label, *kernel, architecture)
        print(f"{'':8s} {label:60s} {found['registers']:9d} {found['shared']:7d} {found['spilled']:8d}")
