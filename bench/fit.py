"""Seconds to 98 % on MNIST's test images:  python -m bench.fit --data FOLDER"""

from __future__ import annotations

import statistics
from pathlib import Path

from rich.table import Table

from .competitors import FITS
from .networks import NETWORKS
from .runner import Job, Result, Runner, options


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--data", type=Path, help="a folder with MNIST's four IDX files, 60,000 + 10,000 images")
    parser.add_argument("--goal", type=float, default=0.98)
    parser.add_argument("--epochs", type=int, default=20, help="at the most")
    args = parser.parse_args()
    if args.data is None:
        print("bench.fit is left out: MNIST does not come along as a whole; --data FOLDER names its four IDX files")
        return
    runner, network = Runner(args), NETWORKS["mnist"]
    how = ("--data", str(args.data.absolute()), "--goal", str(args.goal), "--epochs", "1" if args.quick else str(args.epochs))
    runner.run([Job("fit", name, network.name, args.threads, how) for name in FITS])
    table = Table("competitor", title=f"{network}, SGD with momentum, MNIST: seconds to {args.goal:.1%} on the test images")
    for heading in ("seconds", "times bpgpu", "epochs", "seconds an epoch", "accuracy after each epoch, first round"):
        table.add_column(heading, justify="right")
    found: dict[str, Result] = {}
    for name in FITS:
        mine = [r for r in runner.runs if r["competitor"] == name]
        if mine:
            ends = [r["epochs"][-1]["seconds"] for r in mine]
            found[name] = {
                "seconds": statistics.median(ends) if all(r["reached"] for r in mine) else None,
                "epochs": [len(r["epochs"]) for r in mine],
                "seconds_an_epoch": statistics.median(end / len(r["epochs"]) for end, r in zip(ends, mine, strict=True)),
                "course": [r["epochs"] for r in mine],
            }  # fmt: skip
    ours = found["bpgpu"]["seconds"]
    for name, entry in found.items():
        seconds = entry["seconds"]
        table.add_row(
            name, f"{seconds:.1f}" if seconds else "not reached", f"{seconds / ours:.2f}x" if seconds and ours else "-",
            ", ".join(map(str, entry["epochs"])), f"{entry['seconds_an_epoch']:.2f}",
            " ".join(f"{epoch['accuracy']:.2%}" for epoch in entry["course"][0]),
        )  # fmt: skip
    runner.console.print(table)
    runner.report("fit", {network.name: {"fits": found}}, goal=args.goal)


if __name__ == "__main__":
    main()
