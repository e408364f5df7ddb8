"""The tables of results, which every benchmark prints, and all of them as a page:  python -m bench.tables

The page is bench/results/README.md, made of the JSON files beside it; the table of bench.steps goes into the README, too.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

Report = dict[str, Any]
RESULTS = Path(__file__).parent / "results"
README, STEPS = RESULTS.parent.parent / "README.md", RESULTS / "znver4-2-threads.json"
BEGIN, END = "<!-- python -m bench.tables -->", "<!-- end -->"


@dataclass(frozen=True)
class Sheet:
    title: str
    headings: list[str]
    rows: list[list[str]]
    note: str = ""  # how to read it

    def rich(self) -> Table:
        table = Table(title=self.title, caption=self.note, caption_justify="left", show_lines=True)
        for number, heading in enumerate(self.headings):
            table.add_column(heading, justify="right" if number else "left")
        for row in self.rows:
            table.add_row(*row)
        return table

    def markdown(self) -> str:
        lines = (self.headings, ["---"] + ["--:"] * (len(self.headings) - 1), *self.rows)
        return "\n".join("| " + " | ".join(line) + " |" for line in lines) + f"\n\n{self.note}"


def _by_network(report: Report, title: str, note: str, cell: Callable[[str, Any], str], kind: str = "competitors") -> Sheet:
    """A row a network, a column a competitor."""
    entries = report["networks"].values()
    names = list(dict.fromkeys(name for entry in entries for name in entry[kind]))
    rows = [[entry["title"], *(cell(n, entry[kind][n]) if n in entry[kind] else "-" for n in names)] for entry in entries]
    return Sheet(title, ["network", *names], rows, note)


def _speed(name: str, found: Any) -> str:
    ms = f"{found['ms']:.3g}"
    if name == "floor":
        return ms
    return f"{ms} · {found['of_floor']:.2f}" if name.startswith("bpgpu") else f"{ms} ({found['of_bpgpu']:.2f}x)"


_SPEEDS = "floor: ms; bpgpu: ms · of the floor; peers: ms (how many times bpgpu's)."


def steps(report: Report) -> Sheet:
    peaks = ", ".join(f"{gflops:.0f} GFLOP/s in {dtype}" for dtype, gflops in report["fma_gflops"].items())
    note = (
        f"{_SPEEDS} bpgpu: `train_step`, its checks included; bpgpu many: the recorded step as `fit` replays it, batches "
        f"gathered from a data set; of peak: its products' rate, of that of the fma units ({peaks})."
    )
    sheet = _by_network(report, "A full SGD step: forward, softmax cross-entropy, backward, update", note, _speed)
    sheet.headings.append("of peak")
    for row, entry in zip(sheet.rows, report["networks"].values(), strict=True):
        row.append(f"{entry['competitors']['bpgpu many']['gflops'] / report['fma_gflops'][entry['dtype']]:.0%}")
    return sheet


def inference(report: Report) -> Sheet:
    return _by_network(report, "Labels of a batch: forward pass and argmax", _SPEEDS, _speed)


def optimizers(report: Report) -> Sheet:
    def cell(_: str, found: Any) -> str:
        return f"{found['ms']:.3g} ({found['of_sgd']:.2f}x)"

    return _by_network(report, "The rules, in a step as fit replays it", "ms, and how many times SGD's.", cell)


def inside(report: Report) -> Sheet:
    def cell(_: str, found: Any) -> str:
        return f"{found['ms']:.3g}" + (f" ({found['of_plain']:.3g}x)" if "of_plain" in found else "")

    note = (
        "ms, and how many times the plain step of the same kind. clipped: every example's gradient; norms: of a batch, by "
        "example; health: what falls to a step of the time for looking at the network now and then."
    )
    return _by_network(report, "Single examples' gradients, and health", note, cell)


def memory(report: Report) -> Sheet:
    def cell(name: str, found: Any) -> str:
        return f"{found['peak'] / 1e6:.0f} ({(found['peak'] - found['imported']) / 1e6:.0f})"

    note = "MB resident, the most during three steps; in brackets what is beyond the bare import."
    sheet = _by_network(report, "Memory of a step", note, cell, "memory")
    for row, entry in zip(sheet.rows, report["networks"].values(), strict=True):
        row.insert(1, f"{entry['parameters'] * (4 if entry['dtype'] == 'float32' else 8) / 1e6:.1f}")
    sheet.headings.insert(1, "parameters")
    return sheet


def scaling(report: Report) -> Sheet:
    rows = []
    for grows, points in report["sweeps"].items():
        for point in points:
            floor, bpgpu, torch = (point["competitors"].get(name) for name in ("floor", "bpgpu", "torch"))
            peer = [f"{torch['ms']:.3g}", f"{torch['of_bpgpu']:.2f}x"] if torch else ["-", "-"]
            ours = [f"{bpgpu['ms']:.3g}", f"{bpgpu['of_floor']:.2f}", f"{bpgpu['gflops']:.0f}"]
            rows.append([f"{grows} {point['at']}", f"{floor['ms']:.3g}", *ours, *peer])
    headings = ["what grows", "floor ms", "bpgpu ms", "of floor", "GFLOP/s", "torch ms", "times bpgpu"]
    return Sheet(
        "A full SGD step against threads, batch and width", headings, rows,
        "What does not grow is that of 784-1024-1024-10 relu, batch 128, all threads.",
    )  # fmt: skip


def fit(report: Report) -> Sheet:
    (entry,), rows = report["networks"].values(), []
    ours = entry["fits"]["bpgpu"]["seconds"]
    for name, found in entry["fits"].items():
        seconds = found["seconds"]
        rows.append([
            name, f"{seconds:.1f}" if seconds else "not reached", f"{seconds / ours:.2f}x" if seconds and ours else "-",
            ", ".join(map(str, found["epochs"])), f"{found['seconds_an_epoch']:.2f}",
            " ".join(f"{epoch['accuracy']:.2%}" for epoch in found["course"][0]),
        ])  # fmt: skip
    headings = ["competitor", "seconds", "times bpgpu", "epochs", "seconds an epoch", "accuracy by epoch, first round"]
    title = f"Seconds to {report['goal']:.1%} on MNIST's test images, {entry['title']}, SGD with momentum"
    return Sheet(title, headings, rows, "Medians over the rounds; epochs of each round.")


SHEETS = {
    "steps": steps, "optimizers": optimizers, "inference": inference, "inside": inside, "scaling": scaling,
    "memory": memory, "fit": fit,
}  # fmt: skip


def sheet(report: Report) -> Sheet:
    return SHEETS[report["part"]](report)


def page(folder: Path = RESULTS) -> str:
    reports = [(file, json.loads(file.read_text())) for file in sorted(folder.glob("*.json"))]
    parts = sorted((r for r in reports if r[1].get("part") in SHEETS), key=lambda r: list(SHEETS).index(r[1]["part"]))
    text = [
        "# What was measured\n\nWritten by `python -m bench.tables`; [the method](../README.md), and what had been expected."
    ]
    for file, report in parts:
        shown, about = sheet(report), report["machine"]
        versions = ", ".join(f"{name} {number}" for name, number in sorted(report["versions"].items()) if name != "bpgpu")
        text.append(
            f"## {shown.title}\n\n{shown.markdown()}\n\n{about['cpu']} ({about['llvm_cpu']}), {about['threads']} threads, "
            f"{report['rounds']} rounds, {report['date'][:10]}, commit {report['commit']['revision'][:7]}, "
            f"Python {report['python']}, {versions}: [{file.name}]({file.name})"
        )
        if (picture := file.with_suffix(".svg")).exists():
            text.append(f"![{shown.title}]({picture.name})")
    return "\n\n".join(text) + "\n"


def with_table(text: str, file: Path) -> str:
    """The README's text, its table that of a file of bench.steps.  ValueError: it has no place for one."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the README has no lines {BEGIN} and {END} for the table to stand between")
    return f"{before}{BEGIN}\n{sheet(json.loads(file.read_text())).markdown()}\n{END}{after}"


def main() -> None:
    (RESULTS / "README.md").write_text(page(), encoding="utf-8")
    README.write_text(with_table(README.read_text(encoding="utf-8"), STEPS), encoding="utf-8")
    print(f"written to {RESULTS / 'README.md'} and {README}")


if __name__ == "__main__":
    main()
