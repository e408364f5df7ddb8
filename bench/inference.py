"""The labels of a batch, relative to the forward pass's products:  python -m bench.inference"""

from __future__ import annotations

from .networks import BATCHES
from .runner import Runner, check, jobs_of, options

NETWORKS = [n for n in BATCHES if n.batch in (1, 128, 4096)]


def main() -> None:
    args = options(__doc__).parse_args()
    runner = Runner(args, seconds=0.5)
    runner.run(jobs_of("inference", NETWORKS, args.threads))
    check(runner.runs, slack=0.02)  # of the shares of labels: one in 50 may be a close call
    runner.report("inference", {n.name: {"competitors": runner.speeds(n)} for n in NETWORKS})


if __name__ == "__main__":
    main()
