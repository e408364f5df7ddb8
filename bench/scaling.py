"""A step against threads, batch size and width:  python -m bench.scaling"""

from __future__ import annotations

from .networks import BATCHES, WIDTHS, Network
from .runner import Job, Runner, check, options


def main() -> None:
    args = options(__doc__).parse_args()
    runner = Runner(args, seconds=0.5)
    base = next(n for n in BATCHES if n.batch == 128)
    counts = sorted({2**k for k in range(args.threads.bit_length()) if 2**k < args.threads} | {args.threads})
    sweeps: dict[str, list[tuple[int, Network, int]]] = {  # what grows: its value, the network, threads
        "threads": [(count, base, count) for count in counts],
        "batch": [(n.batch, n, args.threads) for n in BATCHES],
        "width": [(n.layers[1], n, args.threads) for n in WIDTHS],
    }
    points = dict.fromkeys((n, threads) for sweep in sweeps.values() for _, n, threads in sweep)
    runner.run([Job("step", name, n.name, threads) for n, threads in points for name in ("floor", "bpgpu", "torch")])
    check(runner.runs)
    figures = {
        grows: [{"at": at, "competitors": runner.speeds(network, threads)} for at, network, threads in sweep]
        for grows, sweep in sweeps.items()
    }
    runner.report("scaling", {n.name: {} for n, _ in points}, sweeps=figures)


if __name__ == "__main__":
    main()
