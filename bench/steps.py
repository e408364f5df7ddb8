"""A full SGD step of bpgpu and its peers, relative to the floor:  python -m bench.steps"""

from __future__ import annotations

import statistics

from .networks import DEFAULT, EVERY
from .runner import Runner, check, chosen, jobs_of, options


def main() -> None:
    parser = options(__doc__, rounds=3, networks=DEFAULT)
    args = parser.parse_args()
    networks, runner = chosen(parser, args), Runner(args)
    runner.run(jobs_of("step", networks, args.threads))
    check(runner.runs)
    rates = [(EVERY[r["network"]].dtype, r["flops"] / r["ms"] / 1e6) for r in runner.runs if r["competitor"] == "fma"]
    peak = {dtype: statistics.median(rate for d, rate in rates if d == dtype) for dtype, _ in rates}
    runner.report("steps", {n.name: {"competitors": runner.speeds(n)} for n in networks}, fma_gflops=peak)


if __name__ == "__main__":
    main()
