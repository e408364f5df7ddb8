"""What momentum and Adam cost, relative to plain SGD:  python -m bench.optimizers"""

from __future__ import annotations

from .networks import NETWORKS
from .runner import Runner, chosen, jobs_of, options


def main() -> None:
    parser = options(__doc__, rounds=3, networks=tuple(NETWORKS))
    args = parser.parse_args()
    networks, runner = chosen(parser, args), Runner(args, seconds=0.5)
    runner.run(jobs_of("optimizer", networks, args.threads))
    speeds = {n.name: runner.speeds(n) for n in networks}
    for found in speeds.values():
        for entry in found.values():
            entry["of_sgd"] = entry["ms"] / found["bpgpu sgd"]["ms"]
    runner.report("optimizers", {name: {"competitors": s} for name, s in speeds.items()})


if __name__ == "__main__":
    main()
