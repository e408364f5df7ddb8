"""What all benchmarks of the CPU share: competitors in processes of their own, in rounds, in random order, and the report.

Processes start 100 ms apart: the threads of a BLAS spin for a while after a call.  A process warms up and gives the lower
quartile of its calls; figures are lower quartiles over the rounds.  Reports go to bench/results/ as JSON.
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
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from bpgpu.kernels.machine import target
from bpgpu.team import thread_count

from .competitors import FOREIGN, KINDS
from .networks import EVERY, NETWORKS, Network
from .tables import RESULTS, sheet

ROOT = Path(__file__).parent.parent
PAUSE = 0.1  # seconds between two processes
LIMIT = 600  # seconds a process may take
THREADS = (  # where they are looked up; NPROC is XLA's
    "OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS", "NUMBA_NUM_THREADS", "NPROC",
)  # fmt: skip

Result = dict[str, Any]


@dataclass(frozen=True)
class Job:
    kind: str  # of competitors.KINDS
    competitor: str
    network: str
    threads: int
    options: tuple[str, ...] = ()


def jobs_of(kind: str, networks: list[Network], threads: int) -> list[Job]:
    """Every competitor of a kind on every network; the fma units once for each dtype."""
    jobs = [Job(kind, c, n.name, threads) for n in networks for c in KINDS[kind] if c != "fma"]
    return jobs + [Job(kind, "fma", n.name, threads) for n in {n.dtype: n for n in networks}.values() if "fma" in KINDS[kind]]


def options(description: str | None, rounds: int = 2, networks: tuple[str, ...] | None = None) -> argparse.ArgumentParser:
    """The arguments of every benchmark; `networks` are the default of --networks where there is a choice."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    if networks:
        parser.add_argument(
            "--networks", nargs="+", default=list(networks), metavar="NAME", help=f"all, or of: {', '.join(NETWORKS)}"
        )
    parser.add_argument("--rounds", type=int, default=rounds)
    parser.add_argument("--threads", type=int, default=thread_count(), help="of every competitor (default: %(default)s)")
    parser.add_argument("--quick", action="store_true", help="one short round, to see that all works; writes no file")
    parser.add_argument("--output", type=Path, help="default: in bench/results/, named after the machine")
    parser.add_argument("--peers-python", default=sys.executable, help="a Python that has PyTorch, JAX and scikit-learn")
    return parser


def chosen(parser: argparse.ArgumentParser, args: argparse.Namespace) -> list[Network]:
    names = list(NETWORKS) if args.networks == ["all"] else args.networks
    if unknown := set(names) - set(NETWORKS):
        parser.error(f"no network is called {', '.join(sorted(unknown))}; there are {', '.join(NETWORKS)}")
    return [NETWORKS[name] for name in names]


class Runner:
    """Starts competitors, keeps what they said, and reports it."""

    def __init__(self, args: argparse.Namespace, seconds: float = 1.0) -> None:
        self.args, self.rounds = args, 1 if args.quick else args.rounds
        self.measure = ("--seconds", "0.2", "--least", "5") if args.quick else ("--seconds", str(seconds), "--least", "10")
        self.runs: list[Result] = []
        self.skipped: dict[Job, str] = {}  # why
        self.stamp: Result = {
            "date": datetime.now(timezone.utc).isoformat(timespec="seconds"), "commit": commit(),
            "machine": machine(args.threads), "os": platform.platform(), "python": platform.python_version(),
            "rounds": self.rounds,
        }  # fmt: skip
        self.console = Console(width=None if sys.stdout.isatty() else 170)

    def start(self, job: Job, *options: str) -> Result:
        foreign = KINDS[job.kind][job.competitor][0][0] in FOREIGN
        python = self.args.peers_python if foreign else sys.executable
        command = [python, "-m", "bench.competitors", job.kind, job.competitor, job.network, *job.options, *options]
        environment = os.environ | dict.fromkeys(THREADS, str(job.threads))
        time.sleep(PAUSE)
        try:
            done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LIMIT)
        except subprocess.TimeoutExpired:
            return {"skipped": f"not done after {LIMIT} s"}
        if done.returncode == 0:
            result: Result = json.loads(done.stdout.splitlines()[-1])
            return result
        if not foreign:
            raise SystemExit(f"{job.competitor} failed on {job.network}:\n{done.stderr}")
        return {"skipped": "failed: " + (done.stderr.strip().splitlines() or ["without a word"])[-1]}

    def run(self, jobs: list[Job]) -> None:
        """Every job once a round: networks in random order, and their competitors in random order."""
        groups: dict[tuple[str, int], list[Job]] = {}
        for job in jobs:
            groups.setdefault((job.network, job.threads), []).append(job)
        kernels = {}  # are to be on disk before anything is measured
        for job in jobs:
            if job.competitor.startswith("bpgpu") and job.kind != "fit":
                network = EVERY[job.network]
                kernels[job.kind, job.competitor, network.activation, network.dtype] = job
        columns = (TextColumn("{task.description:40}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
            task = progress.add_task("", total=len(kernels) + self.rounds * len(jobs))
            for job in kernels.values():
                progress.update(task, description=f"kernels of {job.competitor} on {job.network}", advance=1)
                self.start(job, "--seconds", "0", "--least", "1")
            for number in range(self.rounds):
                for group in random.sample(list(groups.values()), len(groups)):
                    for job in random.sample(group, len(group)):
                        progress.update(task, description=f"{job.competitor} on {job.network}", advance=1)
                        if job not in self.skipped:
                            self.run_once(job, number)

    def run_once(self, job: Job, number: int) -> None:
        seed = ("--seed", str(number)) if job.kind == "fit" else ()
        result = self.start(job, *self.measure, *seed)
        if "skipped" in result:
            self.skipped[job] = result["skipped"]
        else:
            self.runs.append(result | {"threads": job.threads, "round": number})

    def speeds(self, network: Network, threads: int | None = None) -> Result:
        """Lower quartiles over the rounds, for each competitor on a network, beside the floor and bpgpu."""
        found: Result = {}
        here = [r for r in self.runs if (r["network"], r["threads"]) == (network.name, threads or self.args.threads)]
        for name in KINDS[here[0]["kind"]]:
            mine = [r for r in here if r["competitor"] == name]
            if mine and name != "fma":
                ms = float(np.quantile([r["ms"] for r in mine], 0.25))
                found[name] = {
                    "ms": ms, "gflops": mine[0]["flops"] / ms / 1e6, "ms_of_rounds": [r["ms"] for r in mine],
                    "cores_used": statistics.median(r["cores_used"] for r in mine),
                }  # fmt: skip
        for entry in found.values():
            entry |= {f"of_{name}": entry["ms"] / found[name]["ms"] for name in ("floor", "bpgpu") if name in found}
        return found

    def report(self, part: str, networks: dict[str, Result], **figures: Any) -> None:
        """Print its table, and write all of it to the file, unless --quick; `networks` has the figures of each."""
        report = (
            self.stamp
            | {"part": part, "networks": {name: described(EVERY[name]) | f for name, f in networks.items()}}
            | figures
        )
        report["versions"] = {name: v for r in self.runs for name, v in r["versions"].items()}
        if found := [r["blas"] for r in self.runs if "blas" in r]:
            report["blas"] = found[0]
        report["skipped"] = [{"competitor": j.competitor, "network": j.network, "why": why} for j, why in self.skipped.items()]
        report["runs"] = self.runs
        about, shown = report["machine"], sheet(report)
        self.console.print(shown.rich())
        self.console.print(f"{about['cpu']} ({about['llvm_cpu']}), {about['threads']} threads", highlight=False)
        if (load := about["load_at_start"]) and load[0] > 0.5:
            self.console.print(
                f"[yellow]the machine was busy (load {load[0]:.1f} at the start): these figures are not to be trusted"
            )
        for reason in sorted({f"{j.competitor}: {why}" for j, why in self.skipped.items()}):
            self.console.print(f"left out  {reason}", markup=False)
        name = f"{target()[0]}-{self.args.threads}-threads" + ("" if part == "steps" else f"-{part}")
        output = self.args.output or (None if self.args.quick else RESULTS / f"{name}.json")
        if output:
            output.parent.mkdir(parents=True, exist_ok=True)
            output.write_text(json.dumps(report, indent=1) + "\n")
            self.console.print(f"written to {output}")


def check(runs: list[Result], slack: float = 1e-8) -> None:
    """What a network's competitors computed in their first call must agree, to 2 % and `slack`."""
    for network in {r["network"] for r in runs}:
        firsts = {r["competitor"]: r["first"] for r in runs if r["network"] == network and r["first"]}
        by, expected = next(((c, f) for c, f in firsts.items() if not c.startswith("bpgpu")), ("", None))
        for competitor, found in firsts.items():
            if expected and any(abs(f - e) > 0.02 * e + slack for f, e in zip(found, expected, strict=True)):
                raise SystemExit(f"{competitor} computes something else than {by} on {network}: {found}, {expected}")


def described(network: Network) -> Result:
    return {
        "title": str(network), "layers": network.layers, "activation": network.activation, "batch": network.batch,
        "dtype": network.dtype, "parameters": network.parameters, "flops": network.flops,
    }  # fmt: skip


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
