"""How long the first use takes, and how much is installed:  python -m bench.startup"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from pathlib import Path

from rich.console import Console
from rich.progress import track
from rich.table import Table

import bpgpu

IMPORT = """
import time
begun = time.perf_counter()
import {module}
print(time.perf_counter() - begun)
"""

TRAIN = """
import time
import numpy as np
import bpgpu
net = bpgpu.MLP([784, 1024, 1024, 10], activation="relu")
rng = np.random.default_rng(0)
X, y, optimizer = rng.standard_normal((128, 784), np.float32), rng.integers(0, 10, 128), bpgpu.SGD(1e-3)
begun = time.perf_counter()
net.train_step(X, y, optimizer)
print(time.perf_counter() - begun)
"""
ROUNDS = 5


def python(code: str, cache: str) -> tuple[float, float]:
    """(what the code printed, seconds from the start of the process to its end)."""
    begun = time.perf_counter()
    environment = os.environ | {"BPGPU_CACHE_DIR": cache}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(done.stderr)
    return float(done.stdout), time.perf_counter() - begun


def dependencies(name: str, seen: dict[str, Distribution]) -> dict[str, Distribution]:
    """What installing a package brings with it, on this machine, without extras."""
    for requirement in distribution(name).requires or []:
        if "extra ==" in requirement:
            continue
        found = re.match(r"[\w.-]+", requirement)
        assert found
        needed = found[0].lower().replace("_", "-")
        if needed not in seen and needed != name:
            try:
                seen[needed] = distribution(needed)
            except PackageNotFoundError:  # for another system or version of Python
                continue
            dependencies(needed, seen)
    return seen


def package_files() -> Iterator[Path]:
    for folder, folders, files in os.walk(Path(bpgpu.__file__).parent, followlinks=True):
        folders[:] = [f for f in folders if f != "__pycache__"]
        yield from (Path(folder, file) for file in files)


def main() -> None:
    table = Table("what", "figure")
    with tempfile.TemporaryDirectory() as cache:
        first, first_process = python(TRAIN, cache)
        kept = sum(file.stat().st_size for file in Path(cache).iterdir())
        rounds = track(range(ROUNDS), "rounds", console=Console(stderr=True), transient=True)
        figures = [
            (
                python(IMPORT.format(module="bpgpu"), cache)[0],
                python(IMPORT.format(module="numpy"), cache)[0],
                *python(TRAIN, cache),
            )
            for _ in rounds
        ]
    imported, numpy_alone, step, process = (statistics.median(column) for column in zip(*figures, strict=True))
    table.add_row("import bpgpu", f"{imported:.3f} s, of which numpy {numpy_alone:.3f} s")
    table.add_row("first training step, no kernels on disk", f"{first:.2f} s (process {first_process:.2f} s)")
    table.add_row("kernels on disk", f"{kept / 1e3:.0f} kB")
    table.add_row("first training step of the next process", f"{step:.3f} s")
    table.add_row("that process, from its start to its end", f"{process:.3f} s")
    table.add_row("bpgpu, installed", f"{sum(file.stat().st_size for file in package_files()) / 1e6:.1f} MB")
    total = 0
    for name, found in sorted(dependencies("bpgpu", {}).items()):
        size = sum(path.stat().st_size for file in found.files or () if (path := Path(str(file.locate()))).is_file())
        total += size
        table.add_row(f"{name} {found.version}, installed", f"{size / 1e6:.1f} MB")
    table.add_row("all dependencies together", f"{total / 1e6:.1f} MB")
    Console().print(table)


if __name__ == "__main__":
    main()
