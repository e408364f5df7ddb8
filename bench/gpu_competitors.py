"""One competitor on the GPU, in this process:  python -m bench.gpu_competitors NAME DEVICE SECONDS  prints a line of JSON for
each network and precision.

The steps are those of bench/peers.py.  Many are issued before they are waited for, as in a training run.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from .measuring import Run, measure, moved
from .networks import GPU_NETWORKS, LEARNING_RATE, NETWORKS, Network
from .peers import jax_parts, torch_parts

PRECISIONS = ("fp32", "tf32", "bf16")


def many(network: Network) -> int:
    """How many steps are issued before they are waited for: up to 32, fewer where a step takes long."""
    return max(1, min(32, 10**12 // network.flops))


def bpgpu_run(network: Network, precision: str, device: str, fp32: str = "exact", launches: str = "") -> Run:
    """The recorded step as net.fit replays it, each batch gathered on the device; fp32: how that precision is come by;
    launches: how a step's kernels are launched, if not as a graph of ordinary ones."""
    import bpgpu
    from bpgpu.epochs import Epochs

    backend = bpgpu.get_backend(device)
    if launches:
        backend = launching(backend, launches)
    net = bpgpu.MLP(
        network.layers, activation=network.activation, backend=backend, precision=fp32 if precision == "fp32" else precision
    )
    for l, W in enumerate(network.weights()):
        net.weights[l] = W
    steps = max(1, min(many(network), 2**28 // (4 * network.batch * network.layers[0])))  # at most 256 MiB of data
    X, y = network.data(steps)
    optimizer = bpgpu.SGD(LEARNING_RATE)
    trainer = net.trainer(optimizer)
    epochs = Epochs(trainer, X, y, None, network.batch)
    epochs.begin(optimizer, np.arange(len(X)))
    program, read = epochs.programs[0][0], net.backend.to_numpy

    def run(steps: int) -> None:
        program.run(0, steps)
        read(epochs.losses)

    return Run(lambda: run(steps), lambda: [read(W) for W in net.weights], steps, lambda: run(1))


def launching(backend: Any, launches: str) -> Any:
    """The backend on the same GPU that launches in another way."""
    from bpgpu.cuda import CUDABackend
    from bpgpu.early import EarlyDevice
    from bpgpu.grid import GridBackend

    if not isinstance(backend, CUDABackend):
        raise RuntimeError("only GPUs launch")
    return GridBackend(backend.device) if launches == "grid" else CUDABackend(EarlyDevice(backend.device.index))


def torch_run(network: Network, precision: str, device: str, how: str = "torch") -> Run:
    import torch

    step, weights = torch_parts(network, how, device, precision)
    wait: Callable[[], Any] = torch.cuda.synchronize if device == "cuda" else lambda: None

    def run(steps: int) -> None:
        for _ in range(steps):
            step()
        wait()

    return Run(lambda: run(many(network)), weights, many(network), lambda: run(1))


def jax_run(network: Network, precision: str, device: str, scanned: bool = False) -> Run:
    import jax

    if (found := jax.default_backend()) != {"cuda": "gpu"}.get(device, device):
        raise RuntimeError(f"JAX finds no GPU, only {found}; python -m pip install 'jax[cuda13]'")
    steps = many(network)
    step, wait, weights = jax_parts(network, precision, steps if scanned else 1)
    first_step, first_wait, first_weights = jax_parts(network, precision) if scanned else (step, wait, weights)

    def run() -> None:
        for _ in range(1 if scanned else steps):
            step()
        wait()

    return Run(run, first_weights, steps, lambda: (first_step(), first_wait()))


def floor_run(network: Network, precision: str, device: str) -> Run:
    """Z = X W and dW = X^T dZ for each layer, dX = dZ W^T for each but the first, into arrays that are there."""
    import torch

    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    how = {"dtype": torch.bfloat16 if precision == "bf16" else torch.float32, "device": device}
    n, shapes = network.batch, network.shapes
    a, weights = [torch.randn(n, i, **how) for i in network.layers], [torch.randn(s, **how) for s in shapes]
    delta, dX = [torch.randn(n, o, **how) for _, o in shapes], [torch.empty_like(x) for x in a[:-1]]
    z, dW = [torch.empty_like(d) for d in delta], [torch.empty_like(W) for W in weights]

    def step() -> None:
        for l, W in enumerate(weights):
            torch.mm(a[l], W, out=z[l])
        for l in range(len(weights) - 1, -1, -1):
            if l > 0:
                torch.mm(delta[l], weights[l].T, out=dX[l])
            torch.mm(a[l].T, delta[l], out=dW[l])

    if device == "cpu":
        return Run(step)
    step()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(many(network)):
            step()
    return Run(lambda: (graph.replay(), torch.cuda.synchronize()), steps=many(network))


# name: its package, and how it is made
COMPETITORS: dict[str, tuple[str, Callable[[Network, str, str], Run]]] = {
    "floor": ("torch", floor_run),
    "bpgpu": ("bpgpu", bpgpu_run),
    "bpgpu.grid": ("bpgpu", lambda *job: bpgpu_run(*job, launches="grid")),
    "bpgpu.early": ("bpgpu", lambda *job: bpgpu_run(*job, launches="early")),
    "bpgpu.tc": ("bpgpu", lambda *job: bpgpu_run(*job, fp32="fp32-tc")),
    "torch": ("torch", torch_run),
    "torch.compile": ("torch", lambda *job: torch_run(*job, how="torch.compile")),
    "torch.graph": ("torch", lambda *job: torch_run(*job, how="torch.graph")),
    "jax": ("jax", jax_run),
    "jax.scan": ("jax", lambda *job: jax_run(*job, scanned=True)),
}


def compete(name: str, device: str, seconds: float) -> None:
    """Print a line of JSON for each network and precision, in the order of their importance."""
    package, make = COMPETITORS[name]
    try:
        print(json.dumps({"version": version(package)}), flush=True)
        if package == "torch" and device == "cuda":
            import torch

            if not torch.cuda.is_available():
                raise RuntimeError("PyTorch finds no GPU, or was built without CUDA")
    except (PackageNotFoundError, RuntimeError) as error:
        reason = f"{package} is not installed" if isinstance(error, PackageNotFoundError) else str(error)
        print(json.dumps({"failed": reason}))
        return
    for precision in PRECISIONS[:1] if name.startswith("bpgpu.") else PRECISIONS:
        for network in [NETWORKS["small"]] if device == "cpu" else GPU_NETWORKS.values():
            result: dict[str, Any] = {"network": network.name, "precision": precision}
            try:
                run = make(network, precision, device)
                result["moved"] = moved(run, network)
                result |= measure(run, seconds, 10)
            except Exception as error:  # another network, or another precision, may still run
                result["failed"] = f"{type(error).__name__}: {(str(error) or 'without a word').splitlines()[0]}"
            print(json.dumps(result), flush=True)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    compete(sys.argv[1], sys.argv[2], float(sys.argv[3]))
