"""What it costs to clip every example's gradient, and to look inside:  python -m bench.inside"""

from __future__ import annotations

from .competitors import FOREIGN
from .runner import Runner, check, chosen, jobs_of, options

# What is measured, relative to what
RATIOS = {
    "bpgpu clipped": "bpgpu", "bpgpu many clipped": "bpgpu many", "bpgpu norms": "bpgpu", "bpgpu health": "bpgpu many",
    "opacus clipped": "torch", "opacus ghost clipped": "torch",
}  # fmt: skip


def main() -> None:
    parser = options(__doc__, rounds=3, networks=("small", "mnist", "deep", "wide"))
    args = parser.parse_args()
    networks, runner = chosen(parser, args), Runner(args, seconds=0.5)
    jobs = jobs_of("inside", networks, args.threads)
    runner.run([job for job in jobs if job.network == "mnist" or not job.competitor.startswith(FOREIGN)])
    for clipped in (True, False):
        check([r for r in runner.runs if r["competitor"].endswith("clipped") == clipped])
    speeds = {n.name: runner.speeds(n) for n in networks}
    for found in speeds.values():
        for name, base in RATIOS.items():
            if name in found and base in found:
                found[name]["of_plain"] = found[name]["ms"] / found[base]["ms"]
    runner.report("inside", {name: {"competitors": s} for name, s in speeds.items()})


if __name__ == "__main__":
    main()
