"""The benchmarks' own competitors run in their processes, and what they say is judged rightly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bench import competitors, measuring
from bench import memory as bench_memory
from bench.runner import Runner, check
from bench.tables import README, RESULTS, STEPS, page, with_table

ROOT = Path(__file__).parent.parent


def said(*job: str) -> dict:
    command = [sys.executable, "-m", "bench.competitors", *job]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=True)
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    "job",
    [
        ("step", "bpgpu"), ("optimizer", "bpgpu adam"), ("inference", "bpgpu"), ("inference", "floor"),
        ("inside", "bpgpu clipped"), ("inside", "bpgpu many clipped"), ("inside", "bpgpu norms"), ("inside", "bpgpu health"),
    ],
)  # fmt: skip
def test_timed(job: tuple[str, str]) -> None:
    result = said(*job, "small", "--seconds", "0", "--least", "1")
    assert result["ms"] > 0 and result["flops"] > 0
    if job[0] == "inference" and job[1] == "bpgpu":
        assert sum(result["first"]) == pytest.approx(1)
    elif job[1] in ("bpgpu norms", "bpgpu health"):
        assert result["first"] is None and (job[1] == "bpgpu norms") == (result["steps_a_call"] == 1)
    elif job[1] != "floor":
        assert len(result["first"]) == 3 and all(0 < moved < 1 for moved in result["first"])


def test_clipped_steps_agree_and_are_shorter() -> None:
    plain, clipped, replayed = (
        said("inside", name, "small", "--seconds", "0", "--least", "1")["first"]
        for name in ("bpgpu", "bpgpu clipped", "bpgpu many clipped")
    )
    assert clipped == pytest.approx(replayed, rel=1e-6)
    assert all(c < 0.9 * p for c, p in zip(clipped, plain, strict=True))


@pytest.mark.skipif(measuring.peak_resident() is None, reason="this system does not say how much memory a process has had")
def test_memory() -> None:
    result = said("memory", "bpgpu", "small")
    assert 0 < result["imported"] < result["peak"]


def without(monkeypatch: pytest.MonkeyPatch, *, status: str | None, resource: Any) -> None:
    """A system whose /proc/self/status and module resource are these; None: there is none."""

    def read_text() -> str:
        if status is None:
            raise FileNotFoundError
        return status

    monkeypatch.setattr(measuring, "Path", lambda name: SimpleNamespace(read_text=read_text))
    monkeypatch.setitem(sys.modules, "resource", resource)


def test_where_the_peak_of_memory_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    usage = SimpleNamespace(RUSAGE_SELF=0, getrusage=lambda who: SimpleNamespace(ru_maxrss=77))
    units = 1 if sys.platform == "darwin" else 1024
    for status, resource, expected in (
        ("Name:\tpython\nVmHWM:\t    55 kB\n", usage, 55 * 1024),
        ("Name:\tpython\nVmHWM:\t    55 kB\n", None, 55 * 1024),
        ("Name:\tpython\n", usage, 77 * units),
        (None, usage, 77 * units),
        ("Name:\tpython\n", None, None),
        (None, None, None),
    ):
        without(monkeypatch, status=status, resource=resource)
        assert measuring.peak_resident() == expected


def test_without_a_peak_of_memory_all_else_is_measured(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    without(monkeypatch, status=None, resource=None)

    def told(*job: str) -> dict:
        monkeypatch.setattr(sys, "argv", ["bench.competitors", *job])
        competitors.main()
        return json.loads(capsys.readouterr().out)

    assert told("step", "numpy", "small", "--seconds", "0", "--least", "1")["ms"] > 0
    skipped = told("memory", "numpy", "small")["skipped"]
    assert skipped == "this system does not say how much memory a process has had"
    monkeypatch.setattr(Runner, "start", lambda *job: {"skipped": skipped})
    monkeypatch.setattr(sys, "argv", ["bench.memory", "--quick", "--networks", "small"])
    bench_memory.main()
    assert f"left out  bpgpu: {skipped}" in capsys.readouterr().out


def test_fit() -> None:
    result = said("fit", "bpgpu", "mnist", "--data", "bpgpu/mnist10k", "--epochs", "1")
    (epoch,) = result["epochs"]
    assert not result["reached"] and epoch["seconds"] > 0 and 0.7 < epoch["accuracy"] < 0.98


def test_check() -> None:
    def first(competitor: str, *numbers: float) -> dict:
        return {"competitor": competitor, "network": "n", "first": list(numbers)}

    runs = [{**first("floor"), "first": None}, first("bpgpu", 0.1, 0.2), first("torch", 0.1, 0.201)]
    check(runs)
    with pytest.raises(SystemExit, match="jax computes something else than torch on n"):
        check([*runs, first("jax", 0.1, 0.3)])
    check([*runs, first("jax", 0.1, 0.3)], slack=0.1)


def test_tables_of_results_are_those_of_the_files() -> None:
    assert (RESULTS / "README.md").read_text(encoding="utf-8") == page()
    readme = README.read_text(encoding="utf-8")
    assert with_table(readme, STEPS) == readme
