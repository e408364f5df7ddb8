"""The most memory that a step takes, each competitor in its process:  python -m bench.memory"""

from __future__ import annotations

import statistics

from .runner import Job, Result, Runner, chosen, options

COMPETITORS = ("bpgpu", "numpy", "torch", "torch.compile", "jax", "sklearn")


def main() -> None:
    parser = options(__doc__, rounds=1, networks=("small", "mnist", "deep", "mnist-4096", "wide"))
    args = parser.parse_args()
    networks, runner = chosen(parser, args), Runner(args)
    runner.run([Job("memory", name, n.name, args.threads) for n in networks for name in COMPETITORS])
    figures: dict[str, Result] = {n.name: {"memory": {}} for n in networks}
    for n in networks:
        for name in COMPETITORS:
            if mine := [r for r in runner.runs if (r["network"], r["competitor"]) == (n.name, name)]:
                figures[n.name]["memory"][name] = {
                    key: statistics.median(r[key] for r in mine) for key in ("peak", "imported")
                }  # fmt: skip
    runner.report("memory", figures)


if __name__ == "__main__":
    main()
