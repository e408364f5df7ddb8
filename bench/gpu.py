"""The GPU table, in at most 8 minutes:  python -m bench.gpu

1. parity: the tests that compare the real GPU with the CPU, bit for bit, and the fast modes with their bounds;
2. a full SGD step in fp32 (bpgpu: exact, in graphs; bpgpu.early: its launches overlap; bpgpu.grid: in one cooperative
   launch; bpgpu.tc: fp32-tc), tf32 and bf16: bpgpu, PyTorch (eager, torch.compile with CUDA graphs, a whole-step CUDA graph)
   and JAX (jit, scan over steps), each in a process of its own, and the floor: the step's matrix products alone through
   cuBLAS, in one CUDA graph.

Each part runs even if another fails; what is missing is named.  bench/results/GPU.json gets every figure.  Steps are issued
many at a time and waited for at the end: what is measured is the time of a step in a training run.

    python -m bench.gpu --device cpu     the same competitors on the CPU, small and short: shows that they run; writes nothing
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from datetime import datetime, timezone
from importlib.util import find_spec
from typing import Any

from rich.console import Console
from rich.table import Table

from .gpu_competitors import COMPETITORS
from .runner import ROOT, commit

# 140 + 90 + 9 x 27 < 8 minutes; bpgpu compiles its kernels and has three precisions to run
PARITY_SECONDS, OWN_SECONDS, PEER_SECONDS = 140, 90, 27
PARITY_FILES = [f"tests/test_{name}.py" for name in ("cuda", "fast", "dropout", "clip", "micro_batch", "grid", "early")]
MOVED = {"fp32": 0.02, "tf32": 0.02, "bf16": 0.1}  # how far first steps may differ, relative
Result = dict[str, Any]


def parity() -> Result:
    """What pytest says of the tests on the real GPU."""
    from bpgpu.gpu import why_not

    if (reason := why_not()) is not None:
        return {"failed": reason}
    workers = ["-n", "4"] if find_spec("xdist") else []  # NVRTC takes most of the time
    command = [sys.executable, "-m", "pytest", "-q", "-o", "addopts=", *workers]
    command += ["--require-gpu", "-m", "gpu and not exhaustive", *PARITY_FILES]
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=PARITY_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        said = error.stdout or b""
        lines = (said.decode() if isinstance(said, bytes) else said).split()
        return {"failed": f"not done after {PARITY_SECONDS} s; until then {' '.join(lines[:200])}"}
    lines = done.stdout.strip().splitlines() or [done.stderr.strip()[-300:]]
    return {"result": lines[-1], "failures": [line for line in lines if line.startswith(("FAILED", "ERROR"))]}


def race(name: str, device: str, python: str, seconds: float) -> Result:
    """What a competitor says in its time."""
    limit = OWN_SECONDS if name == "bpgpu" else PEER_SECONDS
    command = [python, "-m", "bench.gpu_competitors", name, device, str(seconds)]
    threads = {"OMP_NUM_THREADS": "1"} if device == "cpu" else {}
    process = subprocess.Popen(
        command, cwd=ROOT, env=os.environ | threads, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        out, errors = process.communicate(timeout=limit)
    except subprocess.TimeoutExpired:
        process.kill()
        out, errors = process.communicate()
    found: Result = {"runs": []}
    for line in out.splitlines():
        if line.startswith("{") and line.endswith("}"):
            said = json.loads(line)
            found["runs"].append(said) if "network" in said else found.update(said)
    if not found["runs"] and "failed" not in found:
        found["failed"] = (errors.strip().splitlines() or [f"nothing in {limit} s"])[-1]
    return found


def check(results: dict[str, Result]) -> list[str]:
    """Who has moved the weights otherwise than bpgpu in the first step."""
    firsts = {(c, r["network"], r["precision"]): r.get("moved") for c, found in results.items() for r in found["runs"]}
    wrong = []
    for (competitor, network, precision), found in firsts.items():
        expected = firsts.get(("bpgpu", network, precision))
        if found and expected and any(abs(f - e) > MOVED[precision] * e for f, e in zip(found, expected, strict=True)):
            wrong.append(f"{competitor} computes something else than bpgpu on {network} in {precision}: {found}, {expected}")
    return wrong


def table(results: dict[str, Result]) -> Table:
    shown = Table(title="A full SGD step, ms; bpgpu over the floor, and times the best peer (above 1: bpgpu is faster)")
    for heading in ("network", "precision", *COMPETITORS, "of floor", "best peer"):
        shown.add_column(heading, justify="left" if heading in ("network", "precision") else "right")
    ms = {(r["network"], r["precision"], c): r["ms"] for c, found in results.items() for r in found["runs"] if "ms" in r}
    for network, precision in dict.fromkeys(key[:2] for key in ms):
        mine = {c: ms[network, precision, c] for c in COMPETITORS if (network, precision, c) in ms}
        own, peers = mine.get("bpgpu"), [v for c, v in mine.items() if c != "floor" and not c.startswith("bpgpu")]
        cells = [f"{mine[c]:.4g}" if c in mine else "-" for c in COMPETITORS]
        cells.append(f"{own / mine['floor']:.2f}" if own and "floor" in mine else "-")
        cells.append(f"{min(peers) / own:.2f}x" if own and peers else "-")
        shown.add_row(network, precision, *cells)
    return shown


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--peers-python", default=sys.executable, help="a Python that has PyTorch and JAX")
    args = parser.parse_args()
    console = Console(markup=False, highlight=False, width=None if sys.stdout.isatty() else 190)
    begun = time.perf_counter()
    report: Result = {"date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "commit": commit()}
    if args.device == "cuda":
        report["parity"] = parity()
        console.print(f"parity: {report['parity'].get('failed') or report['parity']['result']}")
        for line in report["parity"].get("failures", ()):
            console.print(f"  {line}")
    results: dict[str, Result] = {}
    for name in COMPETITORS:
        python = sys.executable if name.startswith("bpgpu") else args.peers_python
        results[name] = race(name, args.device, python, 0.1 if args.device == "cpu" else 0.5)
        if "failed" in results[name]:
            console.print(f"{name}: {results[name]['failed']}")
        reasons = {r["failed"]: f"{r['network']} {r['precision']}" for r in results[name]["runs"] if "failed" in r}
        for reason, where in reasons.items():
            console.print(f"{name}, {where}: {reason}")
    report |= {"competitors": results, "seconds": time.perf_counter() - begun}
    for sentence in check(results):
        console.print(sentence)
    if not any("ms" in r for found in results.values() for r in found["runs"]):
        console.print("nothing was measured; no file is written")
        return
    if args.device == "cpu":
        for name, found in results.items():
            console.print(f"{name} runs: {', '.join(r['precision'] for r in found['runs'] if 'ms' in r)}")
    else:
        console.print(table(results))
        from bpgpu.gpu import description, why_not

        report["gpu"] = gpu = description() if why_not() is None else "unknown-gpu"
        name = re.sub(r"\W+", "-", gpu.split(",")[0].split(";")[0].lower()).strip("-")
        output = ROOT / "bench" / "results" / f"{name}.json"
        output.write_text(json.dumps(report, indent=1) + "\n")
        console.print(f"written to {output}")


if __name__ == "__main__":
    main()
