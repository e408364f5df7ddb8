"""One competitor training one network, in this process:  python -m bench.competitors NAME NETWORK  prints a line of JSON.

A step is the same for all: forward pass, softmax cross-entropy (mean), backward pass, plain SGD.  Every competitor starts
from the same weights, biases of 0 and the same batch, and says how far its first step moved each weight matrix, so that
bench.steps can tell whether they all computed the same.  bench.steps sets the number of threads through the environment.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from .floor import fma_units, products
from .networks import LEARNING_RATE, NETWORKS, Array, Network


class Skip(Exception):
    """The competitor has no such network; the message says why."""


@dataclass
class Run:
    """What is timed: call() is `steps` steps.  first() is one step on the first batch; weights() are (i, o) each."""

    call: Callable[[], Any]
    weights: Callable[[], list[Array]] | None = None
    steps: int = 1
    first: Callable[[], Any] | None = None
    flops: float | None = None  # of a call, where it is no training step


# -- bpgpu ------------------------------------------------------------------------------------------------------------


def bpgpu_step(network: Network, threads: int) -> Run:
    """net.train_step: the arguments are checked and copied in each call."""
    import bpgpu

    net = _bpgpu_net(network)
    optimizer, (X, y) = bpgpu.SGD(LEARNING_RATE), network.data()
    return Run(lambda: net.train_step(X, y, optimizer), lambda: net.weights)


def bpgpu_many(network: Network, threads: int) -> Run:
    """The recorded step as net.fit replays it: many steps a call, each with the next batch gathered from a data set."""
    import bpgpu
    from bpgpu.training import SLICE_SECONDS, Epochs

    net = _bpgpu_net(network)
    X, y = network.data(max(1, min(256, 2**26 // (4 * network.batch * network.layers[0]))))  # at most 64 MiB
    optimizer = bpgpu.SGD(LEARNING_RATE)
    trainer = net.trainer(optimizer)
    epochs = Epochs(trainer, X, y, None, network.batch)
    epochs.begin(optimizer, np.arange(len(X)))
    program = epochs.programs[0][0]
    steps = min(epochs.full, max(1, int(SLICE_SECONDS * 100e9 / network.flops)))
    return Run(lambda: program.run(0, steps), lambda: net.weights, steps, lambda: program.run(0, 1))


def _bpgpu_net(network: Network) -> Any:
    import bpgpu

    net = bpgpu.MLP(network.layers, activation=network.activation, dtype=network.dtype)
    for mine, W in zip(net.weights, network.weights(), strict=True):
        mine[:] = W
    return net


# -- NumPy ------------------------------------------------------------------------------------------------------------


def floor(network: Network, threads: int) -> Run:
    """The step's matrix products alone."""
    return Run(products(network))


def _sigmoid(z: Array) -> None:
    np.negative(z, out=z)
    np.exp(z, out=z)
    z += 1
    np.reciprocal(z, out=z)


def _sigmoid_slope(a: Array, room: Array) -> Array:
    return np.multiply(a, np.subtract(1, a, out=room), out=room)


def _tanh_slope(a: Array, room: Array) -> Array:
    return np.subtract(1, np.multiply(a, a, out=room), out=room)


# f in place, and f' from a
ACTIVATIONS: dict[str, tuple[Callable[[Array], object], Callable[[Array, Array], Array]]] = {
    "relu": (lambda z: np.maximum(z, 0, out=z), lambda a, room: np.greater(a, 0, out=room)),
    "tanh": (lambda z: np.tanh(z, out=z), _tanh_slope),
    "sigmoid": (_sigmoid, _sigmoid_slope),
}


def numpy_step(network: Network, threads: int) -> Run:
    """Plain NumPy that allocates nothing of the size of a layer or of the weights."""
    if network.activation not in ACTIVATIONS:
        raise Skip(f"NumPy has no {network.activation} of its own")
    f, slope = ACTIVATIONS[network.activation]
    n, (X, y) = network.batch, network.data()
    weights, rows = network.weights(), np.arange(n)
    biases = [np.zeros(o, network.dtype) for _, o in network.shapes]
    a = [X, *(np.empty((n, o), network.dtype) for o in network.layers[1:])]
    delta, room = ([np.empty_like(x) for x in a] for _ in range(2))
    dW, db = [np.empty_like(W) for W in weights], [np.empty_like(b) for b in biases]
    last = len(weights) - 1

    def step() -> float:
        for l, W in enumerate(weights):
            np.matmul(a[l], W, out=a[l + 1])
            a[l + 1] += biases[l]
            if l < last:
                f(a[l + 1])
        z, dZ = a[-1], delta[-1]
        z -= z.max(axis=1, keepdims=True)
        loss = -z[rows, y]
        np.exp(z, out=dZ)
        total = dZ.sum(axis=1, keepdims=True)
        loss += np.log(total[:, 0])
        dZ /= total * n
        dZ[rows, y] -= 1 / n
        for l in range(last, -1, -1):
            if l > 0:
                np.matmul(delta[l + 1], weights[l].T, out=delta[l])
                delta[l] *= slope(a[l], room[l])
            np.matmul(a[l].T, delta[l + 1], out=dW[l])
            np.sum(delta[l + 1], axis=0, out=db[l])
            for parameter, gradient in ((weights[l], dW[l]), (biases[l], db[l])):
                gradient *= LEARNING_RATE
                parameter -= gradient
        return float(loss.mean())

    return Run(step, lambda: weights)


# -- PyTorch, JAX, scikit-learn ---------------------------------------------------------------------------------------


def torch_step(network: Network, threads: int, compiled: bool = False) -> Run:
    """The usual loop: nn.Sequential of nn.Linear, cross_entropy, backward(), torch.optim.SGD (fused)."""
    import torch

    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)
    return Run(*torch_parts(network, "torch.compile" if compiled else "torch"))


def torch_parts(network: Network, how: str, device: str = "cpu", precision: str = "fp32") -> tuple[Any, Any]:
    """(step, weights): eager, with model and loss compiled, or as one CUDA graph."""
    import torch
    from torch import nn

    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    activations: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "gelu": nn.GELU}
    dtype = getattr(torch, network.dtype)
    linear, modules = [], []
    for W in network.weights():
        layer = nn.Linear(*W.shape, dtype=dtype)
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(W.T))
            layer.bias.zero_()
        linear.append(layer)
        modules += [layer, activations[network.activation]()]
    model = nn.Sequential(*modules[:-1])
    X, y = (torch.from_numpy(array).to(device) for array in network.data())
    model.to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE, fused=True)

    def loss_of(X: Any, y: Any) -> Any:
        with torch.autocast(device, torch.bfloat16, enabled=precision == "bf16"):
            return nn.functional.cross_entropy(model(X), y)

    if how == "torch.compile":  # on a GPU with CUDA graphs
        loss_of = torch.compile(loss_of, mode="reduce-overhead" if device == "cuda" else None)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        loss_of(X, y).backward()
        optimizer.step()

    def weights() -> list[Array]:
        return [layer.weight.detach().cpu().numpy().T for layer in linear]

    if how != "torch.graph" or device == "cpu":
        return step, weights
    stream, before = torch.cuda.Stream(), [p.detach().clone() for p in model.parameters()]
    with torch.cuda.stream(stream):
        for _ in range(3):
            step()
    torch.cuda.synchronize()
    with torch.no_grad():
        for parameter, old in zip(model.parameters(), before, strict=True):
            parameter.copy_(old)
    graph = torch.cuda.CUDAGraph()
    optimizer.zero_grad(set_to_none=True)
    with torch.cuda.graph(graph):
        loss_of(X, y).backward()
        optimizer.step()
    return graph.replay, weights


def torch_compiled(network: Network, threads: int) -> Run:
    """The same with forward and backward pass compiled by torch.compile."""
    return torch_step(network, threads, compiled=True)


def jax_step(network: Network, threads: int) -> Run:
    """One jitted function from parameters to parameters, the old ones donated; waited for in each call."""
    step, wait, weights = jax_parts(network)
    return Run(lambda: (step(), wait()), weights)


def jax_parts(network: Network, precision: str = "fp32", steps: int = 1) -> tuple[Any, Any, Any]:
    """(step, wait, weights): a call of step is `steps` steps, by lax.scan if they are several."""
    import jax
    import jax.numpy as jnp

    if network.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    activations = {
        "relu": jax.nn.relu, "tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid, "gelu": lambda z: jax.nn.gelu(z, approximate=False),
    }  # fmt: skip
    f = activations[network.activation]
    jax.config.update(
        "jax_default_matmul_precision", {"fp32": "float32", "tf32": "tensorfloat32", "bf16": "default"}[precision]
    )

    def loss_of(parameters: Any, X: Any, y: Any) -> Any:
        if precision == "bf16":  # as autocast does: the passes in bfloat16, parameters and loss in float32
            X, parameters = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (X, parameters))
        *hidden, (W, b) = parameters
        for V, c in hidden:
            X = f(X @ V + c)
        z = (X @ W + b).astype(network.dtype)
        return jnp.mean(jax.nn.logsumexp(z, axis=1) - jnp.take_along_axis(z, y[:, None], axis=1)[:, 0])

    def descend(parameters: Any, X: Any, y: Any) -> Any:
        loss, gradient = jax.value_and_grad(loss_of)(parameters, X, y)
        return loss, jax.tree.map(lambda w, g: w - LEARNING_RATE * g, parameters, gradient)

    def several(parameters: Any, X: Any, y: Any) -> Any:
        parameters, losses = jax.lax.scan(lambda p, _: descend(p, X, y)[::-1], parameters, length=steps)
        return losses, parameters

    compiled = jax.jit(descend if steps == 1 else several, donate_argnums=0)
    X, y = (jax.device_put(array) for array in network.data())
    state: list[Any] = [[(jnp.asarray(W), jnp.zeros(W.shape[1], W.dtype)) for W in network.weights()]]

    result: list[Any] = [None]

    def step() -> None:
        result[0], state[0] = compiled(state[0], X, y)

    return step, lambda: jax.block_until_ready((result, state)), lambda: [np.asarray(W) for W, _ in state[0]]


def sklearn_step(network: Network, threads: int) -> Run:
    """MLPClassifier.partial_fit on one batch."""
    from sklearn.neural_network import MLPClassifier

    names = {"relu": "relu", "tanh": "tanh", "sigmoid": "logistic"}
    if network.activation not in names:
        raise Skip(f"scikit-learn has no {network.activation}")
    X, y = network.data()
    model = MLPClassifier(
        network.layers[1:-1], activation=names[network.activation], solver="sgd", momentum=0.0, nesterovs_momentum=False,
        alpha=0.0, batch_size=network.batch, learning_rate_init=LEARNING_RATE, shuffle=False,
    )  # fmt: skip
    model.partial_fit(X, y, classes=np.arange(network.layers[-1]))  # makes the arrays that are filled here
    for mine, W in zip(model.coefs_, network.weights(), strict=True):
        mine[:] = W
    for b in model.intercepts_:
        b[:] = 0
    return Run(lambda: model.partial_fit(X, y), lambda: model.coefs_)


def fma(network: Network, threads: int) -> Run:
    """No step at all: what the machine's fma units can do."""
    call, flops = fma_units(network.dtype, threads)
    return Run(call, flops=flops)


# name: the packages it is made of, of which the first is imported, and how it is made
COMPETITORS: dict[str, tuple[tuple[str, ...], Callable[[Network, int], Run]]] = {
    "fma": (("bpgpu", "numba"), fma),
    "floor": (("numpy",), floor),
    "bpgpu": (("bpgpu", "numpy", "llvmlite", "numba"), bpgpu_step),
    "bpgpu many": (("bpgpu", "numpy"), bpgpu_many),
    "numpy": (("numpy",), numpy_step),
    "torch": (("torch",), torch_step),
    "torch.compile": (("torch",), torch_compiled),
    "jax": (("jax", "jaxlib"), jax_step),
    "sklearn": (("sklearn", "scipy"), sklearn_step),
}
PEERS = ("numpy", "torch", "torch.compile", "jax", "sklearn")


# -- measuring --------------------------------------------------------------------------------------------------------


def moved(run: Run, network: Network) -> list[float] | None:
    """How far the first step moved each weight matrix: root mean square, relative to the matrix's own."""
    if run.weights is None:
        return None
    (run.first or run.call)()
    pairs = zip(run.weights(), network.weights(), strict=True)
    return [float(np.sqrt(np.square(W - W0, dtype=float).mean() / np.square(W0, dtype=float).mean())) for W, W0 in pairs]


def measure(run: Run, seconds: float, least: int) -> dict[str, Any]:
    """Time calls after a warm-up; the figures are of one step."""
    warm, calls = time.perf_counter() + min(0.3, seconds), 0
    while calls < 3 or time.perf_counter() < warm:
        run.call()
        calls += 1
    times: list[float] = []
    begun, cpu = time.perf_counter(), time.process_time()
    while len(times) * run.steps < least or len(times) < 5 or time.perf_counter() - begun < seconds:
        start = time.perf_counter()
        run.call()
        times.append((time.perf_counter() - start) / run.steps)
    elapsed, cpu = time.perf_counter() - begun, time.process_time() - cpu
    low, median = np.percentile(times, [25, 50])
    return {
        "ms": 1e3 * float(low), "median_ms": 1e3 * float(median), "fastest_ms": 1e3 * min(times),
        "steps": len(times) * run.steps, "steps_a_call": run.steps, "cores_used": cpu / elapsed,
    }  # fmt: skip


def peak_resident() -> int:
    """Bytes: the most this process has had in memory."""
    try:  # on Linux ru_maxrss may be that of the process this one was forked from
        status = Path("/proc/self/status").read_text()
        return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmHWM"))
    except OSError:
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def forget_peak() -> bool:
    """Let the peak be what is in memory now.  Only Linux can."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def memory(network: Network) -> dict[str, Any]:
    """Of bpgpu: bytes of the parameters, peak resident memory beyond the imports, and what the steps alone add to it."""
    import bpgpu
    import bpgpu.cpu
    import bpgpu.training

    imported = peak_resident()
    net, optimizer = bpgpu.MLP(network.layers, activation=network.activation, dtype=network.dtype), bpgpu.SGD(LEARNING_RATE)
    X, y = network.data()
    made = peak_resident()
    separate = forget_peak()
    ready = peak_resident()
    for _ in range(3):
        net.train_step(X, y, optimizer)
    trained = peak_resident()
    return {
        "parameters": net.theta.nbytes, "peak": max(made, trained) - imported, "steps": trained - ready if separate else None,
    }  # fmt: skip


def blas() -> dict[str, Any]:
    """NumPy's BLAS: as built and, where threadpoolctl is there to ask, as it runs."""
    built = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    found = {"name": built.get("name"), "version": built.get("version")}
    try:
        from threadpoolctl import threadpool_info
    except ImportError:
        return found
    wanted = ("internal_api", "version", "architecture", "threading_layer", "num_threads")
    return found | {"running": [{k: i.get(k) for k in wanted} for i in threadpool_info() if i["user_api"] == "blas"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("competitor", choices=[*COMPETITORS, "memory"])
    parser.add_argument("network", choices=NETWORKS)
    parser.add_argument("--seconds", type=float, default=1.0, help="measure for at least so long")
    parser.add_argument("--least", type=int, default=10, help="and at least so many steps")
    args = parser.parse_args()
    warnings.simplefilter("ignore")
    network = NETWORKS[args.network]
    result: dict[str, Any] = {"competitor": args.competitor, "network": network.name, "python": platform.python_version()}
    if args.competitor == "memory":
        print(json.dumps(result | memory(network)))
        return
    if args.competitor == "floor":
        result["blas"] = blas()
    needs, make = COMPETITORS[args.competitor]
    try:
        importlib.import_module(needs[0])
        result["versions"] = {name: version({"sklearn": "scikit-learn"}.get(name, name)) for name in needs}
        run = make(network, int(os.environ.get("OMP_NUM_THREADS") or os.cpu_count() or 1))
        result["moved"] = moved(run, network)
        result |= measure(run, args.seconds, args.least)
        result["flops"] = run.flops or network.flops
    except ImportError as missing:
        result["skipped"] = f"not installed: {missing.name}"
    except Skip as reason:
        result["skipped"] = str(reason)
    print(json.dumps(result))


if __name__ == "__main__":
    main()
