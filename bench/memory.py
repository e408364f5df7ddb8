"""The most memory that a step takes, each competitor in its process:  python -m bench.memory"""

from __future__ import annotations

import statistics

from rich.table import Table

from .runner import Job, Result, Runner, chosen, options

COMPETITORS = ("bpgpu", "numpy", "torch", "torch.compile", "jax", "sklearn")


def main() -> None:
    parser = options(__doc__, rounds=1, networks=("small", "mnist", "deep", "mnist-4096", "wide"))
    args = parser.parse_args()
    networks, runner = chosen(parser, args), Runner(args)
    runner.run([Job("memory", c, n.name, args.threads) for n in networks for c in COMPETITORS])
    figures: dict[str, Result] = {n.name: {"memory": {}} for n in networks}
    table = Table("network", title="Resident memory in MB: the most during a step, and (in brackets) beyond the bare import")
    for name in ("parameters", *COMPETITORS):
        table.add_column(name, justify="right")
    for network in networks:
        cells = [f"{network.parameters * (4 if network.dtype == 'float32' else 8) / 1e6:.1f}"]
        for name in COMPETITORS:
            mine = [r for r in runner.runs if (r["network"], r["competitor"]) == (network.name, name)]
            if not mine:
                cells.append("-")
                continue
            peak, imported = (statistics.median(r[key] for r in mine) for key in ("peak", "imported"))
            figures[network.name]["memory"][name] = {"peak": peak, "imported": imported}
            cells.append(f"{peak / 1e6:.0f} ({(peak - imported) / 1e6:.0f})")
        table.add_row(f"{network.name}\n[dim]{network}", *cells)
    runner.console.print(table)
    runner.report("memory", figures)


if __name__ == "__main__":
    main()
