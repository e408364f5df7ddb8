"""The peers: a step in plain NumPy, PyTorch, Opacus, JAX, thinc and scikit-learn; what they predict; a fit of two of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from .measuring import Data, Run, Skip
from .networks import CLIP, FIT_MOMENTUM, FIT_RATE, LEARNING_RATE, Array, Network

# -- NumPy ------------------------------------------------------------------------------------------------------------


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


def torch_step(network: Network, threads: int, compiled: bool = False) -> Run:
    """The usual loop: nn.Sequential of nn.Linear, cross_entropy, backward(), torch.optim.SGD (fused)."""
    torch_threads(threads)
    return Run(*torch_parts(network, "torch.compile" if compiled else "torch"))


def torch_threads(threads: int) -> None:
    import torch

    torch.set_num_threads(threads)
    torch.set_num_interop_threads(1)


def torch_model(network: Network) -> tuple[Any, list[Any]]:
    """nn.Sequential, and its nn.Linear."""
    import torch
    from torch import nn

    activations: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid, "gelu": nn.GELU}
    linear, modules = [], []
    for W in network.weights():
        layer = nn.Linear(*W.shape, dtype=getattr(torch, network.dtype))
        with torch.no_grad():
            layer.weight.copy_(torch.from_numpy(W.T))
            layer.bias.zero_()
        linear.append(layer)
        modules += [layer, activations[network.activation]()]
    return nn.Sequential(*modules[:-1]), linear


def torch_parts(network: Network, how: str, device: str = "cpu", precision: str = "fp32") -> tuple[Any, Any]:
    """(step, weights): eager, with model and loss compiled, or as one CUDA graph."""
    import torch
    from torch import nn

    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    model, linear = torch_model(network)
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


def jax_logits(network: Network) -> Callable[[Any, Any], Any]:
    import jax
    import jax.numpy as jnp

    if network.dtype == "float64":
        jax.config.update("jax_enable_x64", True)
    activations = {
        "relu": jax.nn.relu, "tanh": jnp.tanh, "sigmoid": jax.nn.sigmoid, "gelu": lambda z: jax.nn.gelu(z, approximate=False),
    }  # fmt: skip
    f = activations[network.activation]

    def logits(parameters: Any, X: Any) -> Any:
        *hidden, (W, b) = parameters
        for V, c in hidden:
            X = f(X @ V + c)
        return X @ W + b

    return logits


def jax_parameters(network: Network) -> list[tuple[Any, Any]]:
    import jax.numpy as jnp

    return [(jnp.asarray(W), jnp.zeros(W.shape[1], W.dtype)) for W in network.weights()]


def jax_parts(network: Network, precision: str = "fp32", steps: int = 1) -> tuple[Any, Any, Any]:
    """(step, wait, weights): a call of step is `steps` steps, by lax.scan if they are several."""
    import jax
    import jax.numpy as jnp

    logits = jax_logits(network)
    jax.config.update(
        "jax_default_matmul_precision", {"fp32": "float32", "tf32": "tensorfloat32", "bf16": "default"}[precision]
    )

    def loss_of(parameters: Any, X: Any, y: Any) -> Any:
        if precision == "bf16":  # as autocast does: the passes in bfloat16, parameters and loss in float32
            X, parameters = jax.tree.map(lambda a: a.astype(jnp.bfloat16), (X, parameters))
        z = logits(parameters, X).astype(network.dtype)
        return jnp.mean(jax.nn.logsumexp(z, axis=1) - jnp.take_along_axis(z, y[:, None], axis=1)[:, 0])

    def descend(parameters: Any, X: Any, y: Any) -> Any:
        loss, gradient = jax.value_and_grad(loss_of)(parameters, X, y)
        return loss, jax.tree.map(lambda w, g: w - LEARNING_RATE * g, parameters, gradient)

    def several(parameters: Any, X: Any, y: Any) -> Any:
        parameters, losses = jax.lax.scan(lambda p, _: descend(p, X, y)[::-1], parameters, length=steps)
        return losses, parameters

    compiled = jax.jit(descend if steps == 1 else several, donate_argnums=0)
    X, y = (jax.device_put(array) for array in network.data())
    state: list[Any] = [jax_parameters(network)]

    result: list[Any] = [None]

    def step() -> None:
        result[0], state[0] = compiled(state[0], X, y)

    return step, lambda: jax.block_until_ready((result, state)), lambda: [np.asarray(W) for W, _ in state[0]]


def thinc_step(network: Network, threads: int) -> Run:
    """begin_update, the loss's gradient, backprop, finish_update; products by NumPy's BLAS, as thinc's own has one thread."""
    from thinc.api import SGD, CategoricalCrossentropy, Gelu, NumpyOps, Relu, Sigmoid, Softmax, chain, set_current_ops

    layers = {"relu": Relu, "sigmoid": Sigmoid, "gelu": Gelu}
    if network.activation not in layers or network.dtype != "float32":
        raise Skip(f"thinc has no {network.activation} in {network.dtype}")
    set_current_ops(NumpyOps(use_blis=False))
    *hidden, last = network.shapes
    model = chain(*(layers[network.activation](o, i) for i, o in hidden), Softmax(last[1], last[0]))
    for layer, W in zip(model.layers, network.weights(), strict=True):
        layer.set_param("W", np.ascontiguousarray(W.T))
        layer.set_param("b", np.zeros(W.shape[1], W.dtype))
    loss, sgd, (X, y) = CategoricalCrossentropy(), SGD(LEARNING_RATE, grad_clip=0.0, use_averages=False), network.data()

    def step() -> None:
        outputs, backprop = model.begin_update(X)
        backprop(loss.get_grad(outputs, y))
        model.finish_update(sgd)

    return Run(step, lambda: [layer.get_param("W").T for layer in model.layers])


def sklearn_step(network: Network, threads: int) -> Run:
    """MLPClassifier.partial_fit on one batch."""
    model, (X, y) = sklearn_model(network), network.data()
    return Run(lambda: model.partial_fit(X, y), lambda: model.coefs_)


def sklearn_model(
    network: Network, learning_rate: float = LEARNING_RATE, momentum: float = 0.0, seed: int | None = None
) -> Any:
    from sklearn.neural_network import MLPClassifier

    names = {"relu": "relu", "tanh": "tanh", "sigmoid": "logistic"}
    if network.activation not in names:
        raise Skip(f"scikit-learn has no {network.activation}")
    X, y = network.data()
    model = MLPClassifier(
        network.layers[1:-1], activation=names[network.activation], solver="sgd", momentum=momentum, nesterovs_momentum=False,
        alpha=0.0, batch_size=network.batch, learning_rate_init=learning_rate, shuffle=seed is not None, random_state=seed,
    )  # fmt: skip
    model.partial_fit(X, y, classes=np.arange(network.layers[-1]))  # makes the arrays that are filled here
    for mine, W in zip(model.coefs_, network.weights(), strict=True):
        mine[:] = W
    for b in model.intercepts_:
        b[:] = 0
    return model


# -- steps in which every example's gradient is clipped ----------------------------------------------------------------


def opacus_step(network: Network, threads: int, ghost: bool = False) -> Run:
    """Opacus without noise: it forms the gradient of every example and clips it."""
    import torch
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    torch_threads(threads)
    model, linear = torch_model(network)
    X, y = (torch.from_numpy(array) for array in network.data())
    how = {"noise_multiplier": 0.0, "max_grad_norm": CLIP, "expected_batch_size": network.batch}
    sgd, loss = torch.optim.SGD(model.parameters(), lr=LEARNING_RATE), torch.nn.CrossEntropyLoss()
    if ghost:
        from opacus.grad_sample import GradSampleModuleFastGradientClipping
        from opacus.optimizers.optimizer_fast_gradient_clipping import DPOptimizerFastGradientClipping
        from opacus.utils.fast_gradient_clipping_utils import DPLossFastGradientClipping

        model = GradSampleModuleFastGradientClipping(model, max_grad_norm=CLIP, use_ghost_clipping=True)
        optimizer = DPOptimizerFastGradientClipping(sgd, **how)
        loss = DPLossFastGradientClipping(model, optimizer, loss, loss_reduction="mean")
    else:
        model, optimizer = GradSampleModule(model), DPOptimizer(sgd, **how)

    def step() -> None:
        optimizer.zero_grad()
        loss(model(X), y).backward()
        optimizer.step()

    return Run(step, lambda: [layer.weight.detach().numpy().T for layer in linear])


def opacus_ghost(network: Network, threads: int) -> Run:
    """Ghost clipping: norms without gradients, then a second backward pass."""
    return opacus_step(network, threads, ghost=True)


# -- inference: the labels of a batch ---------------------------------------------------------------------------------


def torch_labels(network: Network, threads: int, how: str = "torch") -> Run:
    """model(X).argmax(1): as it is, under inference_mode, or under inference_mode and compiled."""
    import torch

    torch_threads(threads)
    model, X = torch_model(network)[0], torch.from_numpy(network.data()[0])
    model.eval()

    def labels_of(X: Any) -> Any:
        return model(X).argmax(1)

    if how == "torch.compile":
        labels_of = torch.compile(labels_of)

    def call() -> Any:
        with torch.inference_mode():
            return labels_of(X)

    return Run(call if how != "torch" else lambda: labels_of(X), labels=call)


def torch_inference_mode(network: Network, threads: int) -> Run:
    return torch_labels(network, threads, "torch.inference_mode")


def torch_compiled_labels(network: Network, threads: int) -> Run:
    return torch_labels(network, threads, "torch.compile")


def jax_labels(network: Network, threads: int) -> Run:
    """One jitted function of parameters and X; waited for in each call."""
    import jax
    import jax.numpy as jnp

    logits, parameters, X = jax_logits(network), jax_parameters(network), jax.device_put(network.data()[0])
    labels_of = jax.jit(lambda parameters, X: jnp.argmax(logits(parameters, X), axis=1))

    def call() -> Any:
        return jax.block_until_ready(labels_of(parameters, X))

    return Run(call, labels=call)


def sklearn_labels(network: Network, threads: int) -> Run:
    """MLPClassifier.predict."""
    model, (X, _) = sklearn_model(network), network.data()
    return Run(lambda: model.predict(X), labels=lambda: model.predict(X))


# -- a whole fit: told(accuracy) after each epoch, until it says True --------------------------------------------------


def torch_fit(network: Network, data: Data, seed: int, told: Callable[[float], bool]) -> None:
    """The usual loop: DataLoader (shuffled), cross_entropy, backward(), torch.optim.SGD (fused)."""
    import torch
    from torch.utils.data import DataLoader, TensorDataset

    torch.manual_seed(seed)
    X, y, X_test, y_test = map(torch.from_numpy, data)
    model, _ = torch_model(network)
    optimizer = torch.optim.SGD(model.parameters(), lr=FIT_RATE, momentum=FIT_MOMENTUM, fused=True)
    loader = DataLoader(TensorDataset(X, y), batch_size=network.batch, shuffle=True)
    done = False
    while not done:
        for some_X, some_y in loader:
            optimizer.zero_grad(set_to_none=True)
            torch.nn.functional.cross_entropy(model(some_X), some_y).backward()
            optimizer.step()
        with torch.inference_mode():
            done = told((model(X_test).argmax(1) == y_test).float().mean().item())


def sklearn_fit(network: Network, data: Data, seed: int, told: Callable[[float], bool]) -> None:
    """MLPClassifier.partial_fit on all data, which is one epoch."""
    X, y, X_test, y_test = data
    model = sklearn_model(network, FIT_RATE, FIT_MOMENTUM, seed)  # its velocity is that of one batch, not quite at rest
    done = False
    while not done:
        model.partial_fit(X, y)
        done = told(model.score(X_test, y_test))
