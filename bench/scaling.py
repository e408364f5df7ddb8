"""A step against threads, batch size and width:  python -m bench.scaling"""

from __future__ import annotations

from rich.table import Table

from .networks import BATCHES, WIDTHS, Network
from .runner import Job, Runner, check, options

COMPETITORS = ("floor", "bpgpu", "torch")


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
    runner.run([Job("step", c, n.name, threads) for n, threads in points for c in COMPETITORS])
    check(runner.runs)
    table = Table("what grows", title="A full SGD step; unless it grows: 784-1024-1024-10 relu, batch 128, all threads")
    for heading in ("", "floor ms", "bpgpu ms", "of floor", "bpgpu GFLOP/s", "torch ms", "times bpgpu"):
        table.add_column(heading, justify="right")
    figures = {
        grows: [{"at": at, "competitors": runner.speeds(network, threads)} for at, network, threads in sweep]
        for grows, sweep in sweeps.items()
    }
    for grows, entries in figures.items():
        for entry in entries:
            floor, bpgpu, torch = (entry["competitors"].get(c) for c in COMPETITORS)
            cells = [f"{floor['ms']:.3g}", f"{bpgpu['ms']:.3g}", f"{bpgpu['of_floor']:.2f}", f"{bpgpu['gflops']:.0f}"]
            cells += [f"{torch['ms']:.3g}", f"{torch['of_bpgpu']:.2f}"] if torch else ["-", "-"]
            table.add_row(grows if entry is entries[0] else "", str(entry["at"]), *cells, end_section=entry is entries[-1])
    runner.console.print(table)
    runner.report("scaling", {n.name: {} for n, _ in points}, sweeps=figures)


if __name__ == "__main__":
    main()
