"""The CPU table:  python -m bench.steps

Every competitor runs in a process of its own (bench/competitors.py), in rounds, in random order, 100 ms apart: the threads
of a BLAS spin for a while after a call.  A process warms up and gives the lower quartile of its steps; the table shows the
median over the rounds.  The results go to bench/results/ as JSON.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import statistics
import subprocess
import sys
import time
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bpgpu.cpu import thread_count
from bpgpu.kernels.machine import target

from .competitors import COMPETITORS, PEERS
from .networks import DEFAULT, NETWORKS, Network

ROOT = Path(__file__).parent.parent
PAUSE = 0.1  # seconds between two processes
LIMIT = 600  # seconds a process may take
THREADS = (  # where they are looked up; NPROC is XLA's
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMBA_NUM_THREADS", "NPROC",
)  # fmt: skip

Result = dict[str, Any]


class Runner:
    """Starts competitors with the same number of threads, and keeps what they said."""

    def __init__(self, threads: int, peers_python: str, seconds: float, least: int) -> None:
        self.peers_python, self.measure = peers_python, ["--seconds", str(seconds), "--least", str(least)]
        self.environment = os.environ | dict.fromkeys(THREADS, str(threads))
        self.runs: list[Result] = []
        self.skipped: dict[tuple[str, str], str] = {}  # (network, competitor) -> why

    def start(self, competitor: str, network: str, *options: str) -> Result:
        python = self.peers_python if competitor in PEERS and competitor != "numpy" else sys.executable
        command = [python, "-m", "bench.competitors", competitor, network, *options]
        time.sleep(PAUSE)
        try:
            done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, timeout=LIMIT)
        except subprocess.TimeoutExpired:
            return {"skipped": f"not done after {LIMIT} s"}
        if done.returncode == 0:
            result: Result = json.loads(done.stdout.splitlines()[-1])
            return result
        if competitor not in PEERS:
            raise SystemExit(f"{competitor} failed on {network}:\n{done.stderr}")
        return {"skipped": "failed: " + (done.stderr.strip().splitlines() or ["without a word"])[-1]}

    def run(self, competitor: str, network: str, round_number: int) -> None:
        if (network, competitor) in self.skipped:
            return
        result = self.start(competitor, network, *self.measure)
        if "skipped" in result:
            self.skipped[network, competitor] = result["skipped"]
        else:
            self.runs.append(result | {"round": round_number})


def jobs(networks: list[Network]) -> list[tuple[str, str]]:
    """The (competitor, network) pairs of a round: networks in random order, and their competitors one after another."""
    order: list[tuple[str, str]] = [("fma", n.name) for n in {n.dtype: n for n in networks}.values()]
    for network in random.sample(networks, len(networks)):
        names = [c for c in COMPETITORS if c != "fma"]
        order += [(c, network.name) for c in random.sample(names, len(names))]
    return order


def check(runs: list[Result], networks: list[Network]) -> None:
    """Every competitor must have moved the weights as the others did in its first step."""
    for network in networks:
        firsts = {r["competitor"]: r["moved"] for r in runs if r["network"] == network.name and r["moved"]}
        by, expected = next((c, firsts[c]) for c in (*PEERS, "bpgpu") if c in firsts)
        for competitor, found in firsts.items():
            if any(abs(f - e) > 0.02 * e + 1e-8 for f, e in zip(found, expected, strict=True)):
                raise SystemExit(f"{competitor} computes something else than {by} on {network.name}: {found}, {expected}")


def summary(runs: list[Result], network: Network) -> Result:
    """Medians over the rounds, for each competitor."""
    found: Result = {}
    for competitor in COMPETITORS:
        mine = [r for r in runs if (r["network"], r["competitor"]) == (network.name, competitor)]
        if mine and competitor != "fma":
            ms = statistics.median(r["ms"] for r in mine)
            found[competitor] = {
                "ms": ms, "gflops": network.flops / ms / 1e6, "ms_of_rounds": [r["ms"] for r in mine],
                "cores_used": statistics.median(r["cores_used"] for r in mine),
            }  # fmt: skip
    for entry in found.values():
        entry["of_floor"] = entry["ms"] / found["floor"]["ms"]
        entry["of_bpgpu"] = entry["ms"] / found["bpgpu"]["ms"]
    return found


def machine(threads: int) -> Result:
    name, features = target()
    model = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        lines = cpuinfo.read_text().splitlines()
        model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), model)
    return {
        "cpu": model, "llvm_cpu": name, "features": [f[1:] for f in features.split(",") if f.startswith("+")],
        "architecture": platform.machine(), "cpus": os.cpu_count(), "threads": threads,
        "load_at_start": os.getloadavg() if hasattr(os, "getloadavg") else None,
    }  # fmt: skip


def commit() -> Result:
    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"revision": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--", ".", ":!bench/results"))}
    except (OSError, subprocess.CalledProcessError):
        return {"revision": None, "dirty": None}


def speed_table(report: Result) -> Table:
    table = Table(title="A full SGD step: forward, softmax cross-entropy, backward, update")
    table.add_column("network")
    names = [c for c in COMPETITORS if any(c in n["competitors"] for n in report["networks"].values())]
    for name in names:
        table.add_column({"floor": "floor\nms GFLOP/s", "bpgpu": "bpgpu\nms of floor GFLOP/s"}.get(name, name), justify="right")
    for name, entry in report["networks"].items():
        cells = []
        for competitor in names:
            if (found := entry["competitors"].get(competitor)) is None:
                cells.append("-")
                continue
            ms, of_floor, gflops = f"{found['ms']:.3g}", f"{found['of_floor']:.2f}", f"{found['gflops']:.0f}"
            if competitor in ("floor", "bpgpu", "bpgpu many"):
                cells.append(f"{ms}  {gflops}" if competitor == "floor" else f"{ms}  {of_floor}  {gflops}")
            else:
                cells.append(f"{ms}  {found['of_bpgpu']:.2f}x")
        table.add_row(f"{name}\n[dim]{entry['title']}", *cells)
    return table


def memory_table(report: Result) -> Table:
    table = Table(title="Memory of bpgpu, MB resident")
    for heading in ("network", "parameters", "added by its steps", "peak beyond the imports"):
        table.add_column(heading, justify="left" if heading == "network" else "right")
    for name, entry in report["networks"].items():
        cells = [entry["memory"].get(key) for key in ("parameters", "steps", "peak")]
        table.add_row(name, *("-" if c is None else f"{c / 1e6:.1f}" for c in cells))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--networks", nargs="+", default=list(DEFAULT), metavar="NAME", help=f"all, or of: {', '.join(NETWORKS)}"
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=thread_count(), help="of every competitor (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one short round, to see that all works; writes no file")
    parser.add_argument("--output", type=Path, help="default: bench/results/MACHINE.json")
    parser.add_argument("--peers-python", default=sys.executable, help="a Python that has PyTorch, JAX and scikit-learn")
    args = parser.parse_args()
    names = list(NETWORKS) if args.networks == ["all"] else args.networks
    if unknown := set(names) - set(NETWORKS):
        parser.error(f"no network is called {', '.join(sorted(unknown))}; there are {', '.join(NETWORKS)}")
    networks = [NETWORKS[name] for name in names]
    rounds, seconds, least = (1, 0.2, 5) if args.quick else (args.rounds, 1.0, 10)
    runner = Runner(args.threads, args.peers_python, seconds, least)

    report: Result = {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "commit": commit(), "machine": machine(args.threads),
        "os": platform.platform(), "python": platform.python_version(), "rounds": rounds,
    }  # fmt: skip
    everything = [jobs(networks) for _ in range(rounds)]
    columns = (TextColumn("{task.description:32}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("", total=sum(map(len, everything)) + 2 * len(networks))
        for network in networks:  # the kernels are on disk before anything is timed
            progress.update(task, description=f"kernels for {network.name}", advance=1)
            runner.start("bpgpu", network.name, "--seconds", "0", "--least", "1")
        for number, order in enumerate(everything):
            for competitor, name in order:
                progress.update(task, description=f"{competitor} on {name}", advance=1)
                runner.run(competitor, name, number)
        memory = {}
        for network in networks:
            progress.update(task, description=f"memory of {network.name}", advance=1)
            memory[network.name] = runner.start("memory", network.name)

    check(runner.runs, networks)
    report["blas"] = next(r["blas"] for r in runner.runs if "blas" in r)
    report["versions"] = {name: v for r in runner.runs for name, v in r["versions"].items()}
    rates = [(NETWORKS[r["network"]].dtype, r["flops"] / r["ms"] / 1e6) for r in runner.runs if r["competitor"] == "fma"]
    report["fma_gflops"] = {dtype: statistics.median(rate for d, rate in rates if d == dtype) for dtype, _ in rates}
    report["networks"] = {
        n.name: {
            "title": str(n), "layers": n.layers, "activation": n.activation, "batch": n.batch, "dtype": n.dtype,
            "parameters": n.parameters, "flops": n.flops, "memory": memory[n.name],
            "competitors": summary(runner.runs, n),
            "skipped": {c: why for (name, c), why in runner.skipped.items() if name == n.name},
        }
        for n in networks
    }  # fmt: skip
    report["runs"] = runner.runs

    console = Console(width=None if sys.stdout.isatty() else 170)
    console.print(speed_table(report))
    console.print("peers: ms, and how many times bpgpu's; many: the recorded step replayed, batches gathered from a data set")
    console.print(memory_table(report))
    peak = ", ".join(f"{gflops:.0f} GFLOP/s {dtype}" for dtype, gflops in report["fma_gflops"].items())
    console.print(f"fma peak {peak}; {report['machine']['cpu']} ({report['machine']['llvm_cpu']}), {args.threads} threads")
    if (load := report["machine"]["load_at_start"]) and load[0] > 0.5:
        console.print(f"[yellow]the machine was busy (load {load[0]:.1f} at the start): these figures are not to be trusted")
    for reason in sorted({f"{c}: {why}" for (_, c), why in runner.skipped.items()}):
        console.print(f"left out  {reason}")
    output = args.output or (None if args.quick else ROOT / "bench" / "results" / f"{target()[0]}-{args.threads}-threads.json")
    if output:
        output.parent.mkdir(parents=True, exist_ok=True)
        output.write_text(json.dumps(report, indent=1) + "\n")
        console.print(f"written to {output}")


if __name__ == "__main__":
    main()
