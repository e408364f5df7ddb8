"""A picture of bench.steps' or bench.scaling's results:  python -m bench.plot RESULTS.json [PICTURE]

Of bench.steps one panel a network; a bar is the time of a step relative to the floor, the step's bare matrix products through
OpenBLAS.  Of bench.scaling one panel for each thing that grows.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

OURS, PEER, LINE, INK = "#c2410c", "#94a3b8", "#334155", "#1e293b"


def panel(axes: Any, entry: dict[str, Any]) -> None:
    entries = {name: found for name, found in entry["competitors"].items() if name != "floor"}
    ratios = [found["of_floor"] for found in entries.values()]
    colours = [OURS if name.startswith("bpgpu") else PEER for name in entries]
    drawn = axes.barh(list(entries), ratios, color=colours, height=0.72)
    axes.axvline(1, color=LINE, linewidth=1, linestyle="--", zorder=0)
    labels = [f"{found['ms']:.3g} ms  ({found['of_floor']:.2f})" for found in entries.values()]
    behind = {"facecolor": "white", "edgecolor": "none", "pad": 1.2}
    axes.bar_label(drawn, labels, padding=4, fontsize=8, color=INK, bbox=behind)
    axes.set_xlim(0, 1.55 * max(1.0, *ratios))  # room for the labels
    axes.invert_yaxis()
    axes.set_title(entry["title"], fontsize=9.5, color=INK)
    axes.tick_params(labelsize=8.5, length=0, colors=INK)
    axes.spines[["top", "right", "left"]].set_visible(False)


def bars(report: dict[str, Any]) -> Any:
    entries = list(report["networks"].values())
    columns = min(3, len(entries))
    rows = -(-len(entries) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(4.3 * columns, 2.9 * rows + 0.5), squeeze=False, layout="constrained")
    for axes, entry in zip(grid.flat, entries, strict=False):
        panel(axes, entry)
    for axes in grid.flat[len(entries) :]:
        axes.set_visible(False)
    figure.suptitle(
        "Time of a full SGD step, relative to its bare matrix products through OpenBLAS (dashed)", fontsize=11, color=INK
    )
    return figure


def curves(report: dict[str, Any]) -> Any:
    figure, grid = plt.subplots(1, len(report["sweeps"]), figsize=(12.9, 3.8), layout="constrained")
    looks = {"bpgpu": (OURS, "-", "o"), "floor": (LINE, "--", ""), "torch": (PEER, "-", "s")}
    for axes, (grows, points) in zip(grid, report["sweeps"].items(), strict=True):
        for name, (colour, style, marker) in looks.items():
            found = [(p["at"], p["competitors"][name]["ms"]) for p in points if name in p["competitors"]]
            if found:
                axes.plot(*zip(*found, strict=True), color=colour, linestyle=style, marker=marker, markersize=4, label=name)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log")
        ticks = [point["at"] for point in points]
        axes.set_xticks(ticks, [str(at) for at in ticks], minor=False)
        axes.set_xlabel(grows, fontsize=9, color=INK)
        axes.tick_params(labelsize=8.5, colors=INK)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
    grid[0].set_ylabel("ms a step", fontsize=9, color=INK)
    grid[0].legend(fontsize=8.5, frameon=False)
    figure.suptitle("Time of a full SGD step; unless it grows: 784-1024-1024-10 relu, batch 128", fontsize=11, color=INK)
    return figure


PLOTS = {"steps": bars, "scaling": curves}


def plot(report: dict[str, Any], picture: Path) -> None:
    figure = PLOTS[report.get("part", "steps")](report)
    machine, revision = report["machine"], report["commit"]["revision"] or "unknown"
    figure.supxlabel(
        f"{machine['cpu']} ({machine['llvm_cpu']}), {machine['threads']} threads, {report['date'][:10]}, commit {revision[:7]}",
        fontsize=8, color=INK,
    )  # fmt: skip
    figure.savefig(picture, dpi=150, facecolor="white", metadata={"Date": None} if picture.suffix == ".svg" else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path)
    parser.add_argument("picture", type=Path, nargs="?", help="default: beside the results, as SVG")
    args = parser.parse_args()
    picture, report = args.picture or args.results.with_suffix(".svg"), json.loads(args.results.read_text())
    if report.get("part", "steps") not in PLOTS:
        parser.error(f"{args.results} is of bench.{report['part']}; pictures are made of bench.{' and bench.'.join(PLOTS)}")
    plot(report, picture)
    print(f"written to {picture}")


if __name__ == "__main__":
    main()
