"""Every kernel compiles for every architecture with NVIDIA's own compiler, which needs no GPU: registers, spills, memory.

`python -m pytest -m exhaustive -s tests/test_cuda_compile.py` prints the table.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from bpgpu import ACTIVATIONS, cuda
from bpgpu.kernels.cuda_source import source
from bpgpu.kernels.names import RULES
from bpgpu.tiles import TILES

pytestmark = pytest.mark.skipif(shutil.which("nvcc") is None, reason="nvcc is not installed")
ARCHITECTURES = "sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100"
MOST_REGISTERS = 255  # times 256 threads is what a multiprocessor has
STATIC_SHARED = 48 * 1024

PRODUCTS = "dense_forward", "hidden_delta", "dense_gradient"
Job = tuple[str, str | None, tuple[str, ...], dict[str, int]]


def jobs(*, every: bool) -> list[Job]:
    """Kernel, dtype, options, sizes: a representative few, or every one with the heaviest of its options."""
    heaviest = {"dense_forward": "gelu", "hidden_delta": "gelu", "dense_gradient": "adam"}
    largest = {**TILES["float32"][0].macros, "ALIGNED": 1}
    found: list[Job] = [(name, "float32", (heaviest[name],), largest) for name in PRODUCTS]
    found += [("output_delta", "float64", ("huber", "gelu", "targets"), {"THREADS": 32})]
    found += [("gather", None, (), {"THREADS": 128}), ("total", "float32", (), {"THREADS": 32})]
    found += [("example_norms", "float64", (), {"THREADS": 32}), ("clip_examples", "float32", (), {"THREADS": 128})]
    for name in ("dropout", "squares", "clip", "max_norm"):
        found += [(name, dtype, (), {"THREADS": 128}) for dtype in ("float32", "float64")]
    if every:
        for dtype in ("float32", "float64"):
            tiles = [{**tile.macros, "ALIGNED": aligned} for tile in TILES[dtype] for aligned in (0, 1)]
            found += [(name, dtype, (heaviest[name],), tile) for name in PRODUCTS for tile in tiles]
            found += [("dense_forward", dtype, (a,), tiles[0]) for a in ACTIVATIONS]
            found += [("activate", dtype, ("softmax",), {"THREADS": 32}), ("total", dtype, (), {"THREADS": 32})]
            found += [("update", dtype, (r,), {"THREADS": 256}) for r in RULES]
            found += [("output_delta", dtype, ("cross_entropy", "softmax", t), {"THREADS": 32}) for t in ("labels", "targets")]
    return found


def compiled(job: Job, architecture: str, folder: Path) -> dict[str, int]:
    """Registers, spilled bytes and static shared memory, as ptxas reports them."""
    name, dtype, options, sizes = job
    text, entry = source(name, dtype, options, **sizes)
    file = folder / f"{entry}.cu"
    file.write_text(text)
    flags: list[Any] = [*cuda.OPTIONS, "-cubin", f"-arch={architecture}", "-Xptxas", "-v", "-Werror", "all-warnings"]
    command = ["nvcc", *flags, "-o", str(file.with_suffix(f".{architecture}")), str(file)]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, f"{entry}: {result.stderr[:2000]}"

    def number(pattern: str) -> int:
        match = re.search(pattern, result.stderr)
        return int(match[1]) if match else 0

    return {
        "registers": number(r"Used (\d+) registers"),
        "spilled": number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"),
        "shared": number(r"(\d+) bytes smem"),
    }


@pytest.mark.parametrize("job", jobs(every=False), ids=lambda job: "-".join((job[0], *job[2])))
def test_kernels_compile_and_fit(job: Job, tmp_path: Path) -> None:
    found = compiled(job, "sm_90", tmp_path)
    assert 0 < found["registers"] <= MOST_REGISTERS
    assert found["spilled"] == 0 and found["shared"] <= STATIC_SHARED


@pytest.mark.exhaustive
@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_kernel_on_every_architecture(architecture: str, tmp_path: Path) -> None:
    print(f"\n{architecture:8s} {'kernel':55s} registers  shared  spilled")
    for job in jobs(every=True):
        found = compiled(job, architecture, tmp_path)
        entry = "_".join(
            (job[0], job[1] or "bytes", *job[2], *(str(job[3][size]) for size in ("BM", "ALIGNED") if size in job[3]))
        )
        print(f"{'':8s} {entry:55s} {found['registers']:9d} {found['shared']:7d} {found['spilled']:8d}")
        assert found["registers"] <= MOST_REGISTERS and found["spilled"] == 0 and found["shared"] <= STATIC_SHARED
