"""What momentum and Adam cost, relative to plain SGD:  python -m bench.optimizers"""

from __future__ import annotations

from rich.table import Table

from .networks import NETWORKS
from .runner import Runner, chosen, jobs_of, options


def main() -> None:
    parser = options(__doc__, rounds=3, networks=tuple(NETWORKS))
    args = parser.parse_args()
    networks, runner = chosen(parser, args), Runner(args, seconds=0.5)
    runner.run(jobs_of("optimizer", networks, args.threads))
    speeds = {n.name: runner.speeds(n) for n in networks}
    table = Table("network", title="A recorded step of bpgpu as fit replays it: ms, and times SGD's")
    for heading in ("sgd", "momentum", "adam"):
        table.add_column(heading, justify="right")
    for network in networks:
        found = speeds[network.name]
        sgd = found["bpgpu sgd"]["ms"]
        for entry in found.values():
            entry["of_sgd"] = entry["ms"] / sgd
        cells = [f"{entry['ms']:.3g}  {entry['of_sgd']:.2f}x" for entry in found.values()]
        table.add_row(f"{network.name}\n[dim]{network}", *cells)
    runner.console.print(table)
    runner.report("optimizers", {name: {"competitors": s} for name, s in speeds.items()})


if __name__ == "__main__":
    main()
