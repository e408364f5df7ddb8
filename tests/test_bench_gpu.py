"""bench.gpu on a machine without a GPU: its own competitor runs on the CPU, and its judgement of results is right."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from rich.console import Console

from bench.gpu import check, table

ROOT = Path(__file__).parent.parent


def test_own_competitor_runs() -> None:
    command = [sys.executable, "-m", "bench.gpu_competitors", "bpgpu", "cpu", "0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=True)
    said, exact, tf32, bf16 = map(json.loads, done.stdout.splitlines())
    assert said["version"] and exact["ms"] > 0 and len(exact["moved"]) == 3 and all(0 < m < 1 for m in exact["moved"])
    assert all("is for GPUs" in r["failed"] for r in (tf32, bf16))


def run(ms: float, moved: list[float] | None, precision: str = "fp32") -> dict:
    return {"network": "n", "precision": precision, "ms": ms, "moved": moved}


def test_table_and_check() -> None:
    results: dict = {
        "floor": {"runs": [run(1.0, None)]},
        "bpgpu": {"runs": [run(1.5, [0.1, 0.2]), run(9, [0.1], "bf16")]},
        "torch": {"runs": [run(3.0, [0.1, 0.201])]},
        "jax": {"runs": [run(6.0, [0.1, 0.3]), {"network": "n", "precision": "tf32", "failed": "no room"}]},
    }
    assert [sentence.split(" on n in fp32")[0] for sentence in check(results)] == ["jax computes something else than bpgpu"]
    console = Console(record=True, width=200)
    console.print(table(results))
    rows = [line for line in console.export_text().splitlines() if "fp32" in line or "bf16" in line]
    assert "1.50" in rows[0] and "2.00x" in rows[0] and "2.00x" not in rows[1]
