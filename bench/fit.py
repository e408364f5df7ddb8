"""Seconds to 98 % on MNIST's test images:  python -m bench.fit --data FOLDER"""

from __future__ import annotations

import statistics
from pathlib import Path

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
    runner.report("fit", {network.name: {"fits": found}}, goal=args.goal)


if __name__ == "__main__":
    main()
