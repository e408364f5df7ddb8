"""One competitor in this process:  python -m bench.competitors KIND NAME NETWORK  prints a line of JSON.

A step is the same for all: forward pass, softmax cross-entropy (mean), backward pass, plain SGD.  Every competitor starts
from the same weights, biases of 0 and the same batch, and says what its first call computed (how far it moved each weight
matrix; the share of each label), so that bench/runner.py can tell whether they all computed the same.  The number of threads
comes through the environment.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from . import peers
from .floor import fma_units, forward_products, products
from .measuring import Run, Skip, blas, fitted, measure, memory, peak_resident, says
from .networks import EVERY, Network


def _ours(name: str) -> Callable[..., Any]:
    """A function of bench/ours.py, for whose bpgpu the peers' Python has no use."""
    return lambda *job: getattr(importlib.import_module("bench.ours"), name)(*job)


def _fma(network: Network, threads: int) -> Run:
    """No step at all: what the machine's fma units can do."""
    call, flops = fma_units(network.dtype, threads)
    return Run(call, flops=flops)


def _floor(network: Network, threads: int) -> Run:
    return Run(products(network))


def _forward_floor(network: Network, threads: int) -> Run:
    return Run(forward_products(network))


Table = dict[str, tuple[tuple[str, ...], Callable[..., Any]]]
_BPGPU, _TORCH, _JAX, _SKLEARN = ("bpgpu", "numpy", "llvmlite", "numba"), ("torch",), ("jax", "jaxlib"), ("sklearn", "scipy")
_OPACUS = ("opacus", "torch")

# name: the packages it is made of, of which the first is imported, and how it is made
STEPS: Table = {
    "fma": (("bpgpu", "numba"), _fma),
    "floor": (("numpy",), _floor),
    "bpgpu": (_BPGPU, _ours("step")),
    "bpgpu many": (_BPGPU, _ours("many")),
    "numpy": (("numpy",), peers.numpy_step),
    "torch": (_TORCH, peers.torch_step),
    "torch.compile": (_TORCH, peers.torch_compiled),
    "jax": (_JAX, peers.jax_step),
    "thinc": (("thinc",), peers.thinc_step),
    "sklearn": (_SKLEARN, peers.sklearn_step),
}
RULES: Table = {
    "bpgpu sgd": (_BPGPU, _ours("many")),
    "bpgpu momentum": (_BPGPU, _ours("momentum")),
    "bpgpu adam": (_BPGPU, _ours("adam")),
}
INSIDE: Table = {
    "bpgpu": (_BPGPU, _ours("step")),
    "bpgpu clipped": (_BPGPU, _ours("clipped")),
    "bpgpu many": (_BPGPU, _ours("many")),
    "bpgpu many clipped": (_BPGPU, _ours("many_clipped")),
    "bpgpu norms": (_BPGPU, _ours("norms")),
    "bpgpu health": (_BPGPU, _ours("health")),
    "torch": (_TORCH, peers.torch_step),
    "opacus clipped": (_OPACUS, peers.opacus_step),
    "opacus ghost clipped": (_OPACUS, peers.opacus_ghost),
}
LABELS: Table = {
    "floor": (("numpy",), _forward_floor),
    "bpgpu": (_BPGPU, _ours("labels")),
    "bpgpu outputs": (_BPGPU, _ours("outputs")),
    "torch": (_TORCH, peers.torch_labels),
    "torch.inference_mode": (_TORCH, peers.torch_inference_mode),
    "torch.compile": (_TORCH, peers.torch_compiled_labels),
    "jax": (_JAX, peers.jax_labels),
    "sklearn": (_SKLEARN, peers.sklearn_labels),
}
FITS: Table = {
    "bpgpu": (_BPGPU, _ours("fit")),
    "torch": (_TORCH, peers.torch_fit),
    "sklearn": (_SKLEARN, peers.sklearn_fit),
}
KINDS = {"step": STEPS, "memory": STEPS, "optimizer": RULES, "inside": INSIDE, "inference": LABELS, "fit": FITS}
FOREIGN = ("torch", "opacus", "jax", "thinc", "sklearn")  # packages that may be missing, or in another Python


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("competitor")
    parser.add_argument("network", choices=EVERY)
    parser.add_argument("--seconds", type=float, default=1.0, help="measure for at least so long")
    parser.add_argument("--least", type=int, default=10, help="and at least so many steps")
    parser.add_argument("--data", type=Path, help="of fit: a folder with MNIST")
    parser.add_argument("--seed", type=int, default=0, help="of fit: of the order of the examples")
    parser.add_argument("--goal", type=float, default=0.98, help="of fit: the accuracy at which it ends")
    parser.add_argument("--epochs", type=int, default=20, help="of fit: at the most")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    network, threads = EVERY[args.network], int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1)
    result: dict[str, Any] = {
        "kind": args.kind, "competitor": args.competitor, "network": network.name, "python": platform.python_version(),
    }  # fmt: skip
    needs, make = KINDS[args.kind][args.competitor]
    try:
        importlib.import_module(needs[0])
        result["versions"] = {name: version({"sklearn": "scikit-learn"}.get(name, name)) for name in needs}
        if args.kind == "fit":
            from bpgpu.data import load_data

            found = load_data(args.data)
            data = (found.X, found.y, found.X_test, found.y_test)
            result |= fitted(make, network, data, args.seed, args.goal, args.epochs)
        else:
            imported, run = peak_resident(), make(network, threads)
            if args.kind == "memory":
                result |= {"imported": imported} | memory(run)
            else:
                result["first"] = says(run, network)
                result |= measure(run, args.seconds, args.least)
                result["flops"] = run.flops or (network.forward_flops if args.kind == "inference" else network.flops)
        if args.competitor == "floor":
            result["blas"] = blas()
    except ImportError as missing:
        result["skipped"] = f"not installed: {missing.name}"
    except Skip as reason:
        result["skipped"] = str(reason)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
