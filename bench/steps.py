"""A full SGD step of bpgpu and its peers, relative to the floor:  python -m bench.steps"""

from __future__ import annotations

import statistics

from .networks import DEFAULT, EVERY
from .runner import Runner, check, chosen, jobs_of, options, speed_table


def main() -> None:
    parser = options(__doc__, rounds=3, networks=DEFAULT)
    args = parser.parse_args()
    networks, runner = chosen(parser, args), Runner(args)
    runner.run(jobs_of("step", networks, args.threads))
    check(runner.runs)
    speeds = {n.name: runner.speeds(n) for n in networks}
    rates = [(EVERY[r["network"]].dtype, r["flops"] / r["ms"] / 1e6) for r in runner.runs if r["competitor"] == "fma"]
    peak = {dtype: statistics.median(rate for d, rate in rates if d == dtype) for dtype, _ in rates}
    say = runner.console.print
    say(speed_table("A full SGD step: forward, softmax cross-entropy, backward, update", networks, speeds))
    say("peers: ms, and how many times bpgpu's; many: the recorded step replayed, batches gathered from a data set")
    about = runner.stamp["machine"]
    rates_said = ", ".join(f"{gflops:.0f} GFLOP/s {dtype}" for dtype, gflops in peak.items())
    say(f"fma peak {rates_said}; {about['cpu']} ({about['llvm_cpu']}), {args.threads} threads")
    runner.report("steps", {name: {"competitors": s} for name, s in speeds.items()}, fma_gflops=peak)


if __name__ == "__main__":
    main()
