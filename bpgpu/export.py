"""A network for others to use: as an ONNX model, as a Python file that needs NumPy alone, as parameters for PyTorch and back.

A fitted estimator may be given in its place.  All of them compute a[L], what MLP.outputs gives, in the arithmetic of whoever
runs them: equal to rounding, not to the bit.
"""

from __future__ import annotations

import base64
import json
import re
import textwrap
from collections.abc import Mapping
from typing import Any

import numpy as np

from .checks import as_numbers
from .mlp import MLP

_ONNX_OPSET, _ONNX_IR = 20, 9  # of May 2023: the first with Gelu
_ONNX_LIMIT = 2**31 - 2**20  # bytes of a protobuf message

Nodes = list[tuple[str, str, str]]  # operation, its inputs, its output; z is the input of f, a the output, a number a constant

_ONNX: dict[str, Nodes] = {
    "identity": [("Identity", "z", "a")],
    "sigmoid": [("Sigmoid", "z", "a")],
    "tanh": [("Tanh", "z", "a")],
    "scaled_tanh": [("Mul", "z 0.6666666666666666", "slow"), ("Tanh", "slow", "t"), ("Mul", "t 1.7159", "a")],
    "relu": [("Relu", "z", "a")],
    "leaky_relu": [("LeakyRelu", "z", "a")],
    "elu": [("Elu", "z", "a")],
    "selu": [("Selu", "z", "a")],
    "gelu": [("Gelu", "z", "a")],
    "silu": [("Sigmoid", "z", "share"), ("Mul", "z share", "a")],
    "softplus": [("Softplus", "z", "a")],
    "softmax": [("Softmax", "z", "a")],
}
_NEGATIVE: Nodes = [("Min", "z 0", "negative"), ("Exp", "negative", "e"), ("Sub", "e 1", "elu"), ("Max", "z 0", "positive")]
_ONNX_FLOAT64: dict[str, Nodes] = _ONNX | {  # where the operator has attributes in float32, or runtimes have none for float64
    "leaky_relu": [("Mul", "z 0.01", "less"), ("Max", "z less", "a")],
    "elu": [*_NEGATIVE, ("Add", "elu positive", "a")],
    "selu": [
        *_NEGATIVE, ("Mul", "elu 1.6732632423543772", "scaled"), ("Add", "scaled positive", "both"),
        ("Mul", "both 1.0507009873554805", "a"),
    ],
    "gelu": [
        ("Mul", "z 0.7071067811865476", "s"), ("Erf", "s", "erf"), ("Add", "erf 1", "twice"), ("Mul", "z twice", "double"),
        ("Mul", "double 0.5", "a"),
    ],
    "softplus": [
        ("Abs", "z", "size"), ("Neg", "size", "down"), ("Exp", "down", "e"), ("Add", "e 1", "more"), ("Log", "more", "log"),
        ("Max", "z 0", "positive"), ("Add", "log positive", "a"),
    ],
}  # fmt: skip


def _network(given: Any) -> MLP:
    """A network itself, or that of a fitted estimator."""
    net = getattr(given, "network_", given)
    if not isinstance(net, MLP):
        raise TypeError(f"expected a bpgpu.MLP, or a fitted MLPClassifier or MLPRegressor, got a {type(given).__name__}")
    return net


def to_onnx(net: MLP | Any) -> bytes:
    """The network as an ONNX model: X (n, inputs) -> output (n, outputs), in its dtype; `classes` in the metadata.

    Opset 20, operators of the standard alone.  Write the bytes to a file, or give them to onnxruntime.InferenceSession.
    (onnxruntime 1.32 has no Erf for float64, so gelu in float64 needs another runtime.)
    ImportError: onnx is not installed.  ValueError: a network of 2 GB or more, which is more than such a file can hold.
    """
    net = _network(net)
    try:
        import onnx
        from onnx import helper, numpy_helper
    except ImportError as error:
        raise ImportError(f"ONNX files need the package onnx ({error}); python -m pip install 'bpgpu[onnx]'") from error
    if net.theta.nbytes > _ONNX_LIMIT:
        raise ValueError(f"the network has {net.theta.nbytes:,} bytes; an ONNX file holds less than 2 GB")
    kind = helper.np_dtype_to_tensor_dtype(net.dtype)
    nodes, a = [], "X"
    tensors: dict[str, np.ndarray[Any, Any]] = {}
    table = _ONNX if net.dtype == np.float32 else _ONNX_FLOAT64
    attributes: dict[str, Any] = {"Softmax": {"axis": 1}, "Selu": {"alpha": 1.6732632423543772, "gamma": 1.0507009873554805}}
    weights, biases = net.views(net.backend.to_numpy(net.theta))
    for l, activation in enumerate((*net.activations, net.output_activation)):
        tensors |= {f"W{l}": weights[l], f"b{l}": biases[l]}
        nodes.append(helper.make_node("Gemm", [a, f"W{l}", f"b{l}"], [f"z{l}"]))
        a = "output" if l == len(weights) - 1 else f"a{l + 1}"
        for operation, inputs, output in table[activation]:
            numbers = {name: np.array(float(name), net.dtype) for name in inputs.split() if name[0].isdigit()}
            tensors |= numbers
            names = {"a": a} | {number: number for number in numbers}
            given, gives = ([names.get(name, f"{name}{l}") for name in part.split()] for part in (inputs, output))
            nodes.append(helper.make_node(operation, given, gives, **attributes.get(operation, {})))
    graph = helper.make_graph(
        nodes, "bpgpu",
        [helper.make_tensor_value_info("X", kind, ["n", net.layers[0]])],
        [helper.make_tensor_value_info("output", kind, ["n", net.layers[-1]])],
        [numpy_helper.from_array(tensor, name) for name, tensor in tensors.items()],
    )  # fmt: skip
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", _ONNX_OPSET)], ir_version=_ONNX_IR, producer_name="bpgpu"
    )
    if net.classes:
        helper.set_model_props(model, {"classes": json.dumps(net.classes)})
    onnx.checker.check_model(model, full_check=True)
    return bytes(model.SerializeToString())


# -- NumPy ---------------------------------------------------------------------------------------------------------------

_NUMPY = {  # f(z) as a Python expression
    "identity": "z",
    "sigmoid": "np.exp(-np.logaddexp(0, -z))",
    "tanh": "np.tanh(z)",
    "scaled_tanh": "1.7159 * np.tanh(z * 2 / 3)",
    "relu": "np.where(z < 0, 0, z)",
    "leaky_relu": "np.where(z < 0, 0.01 * z, z)",
    "elu": "np.where(z < 0, np.expm1(np.minimum(z, 0)), z)",
    "selu": "1.0507009873554805 * np.where(z < 0, 1.6732632423543772 * np.expm1(np.minimum(z, 0)), z)",
    "gelu": "z * ((1 + np.vectorize(math.erf, otypes=[float])(z / math.sqrt(2))) / 2).astype(z.dtype)",
    "silu": "z * np.exp(-np.logaddexp(0, -z))",
    "softplus": "np.logaddexp(0, z)",
    "softmax": "np.exp(z - np.logaddexp.reduce(z, axis=1, keepdims=True))",
}

_SOURCE = '''\
"""A multilayer perceptron, {layers}, written by bpgpu: outputs(X) is its forward pass.  Needs NumPy alone."""

import base64
import math

import numpy as np

LAYERS = {layers}
ACTIVATIONS = {activations}
CLASSES = {classes}
F = {{
{functions}
}}


def outputs(X):
    """a[L] (n, {outputs}) of X (n, {inputs})."""
    a = np.asarray(X, THETA.dtype)
    if a.ndim != 2 or a.shape[1] != LAYERS[0]:
        raise ValueError(f"X has shape {{a.shape}}; expected (rows, {{LAYERS[0]}})")
    for (W, b), activation in zip(PARAMETERS, ACTIVATIONS):
        a = F[activation](a @ W + b)
    return a


def parameters():
    """(W, b) of each layer, from theta = {{w1, w2, ..., b1, b2, ...}}."""
    start, end = 0, sum(i * o for i, o in zip(LAYERS, LAYERS[1:]))
    for i, o in zip(LAYERS, LAYERS[1:]):
        yield THETA[start : start + i * o].reshape(i, o), THETA[end : end + o]
        start, end = start + i * o, end + o


THETA = np.frombuffer(base64.b64decode("""
{theta}
"""), "{dtype}")
PARAMETERS = list(parameters())
'''


def to_numpy_function(net: MLP | Any) -> str:
    """The forward pass as the source of a Python module with a function outputs(X), parameters included.

    It needs Python 3 and NumPy, nothing else; about 5.4 characters for a float32 parameter.
    """
    net = _network(net)
    theta = net.backend.to_numpy(net.theta)
    little = theta.astype(theta.dtype.newbyteorder("<"), copy=False)
    used = dict.fromkeys((*net.activations, net.output_activation))
    return _SOURCE.format(
        layers=list(net.layers), activations=[*net.activations, net.output_activation],
        classes=None if net.classes is None else list(net.classes), inputs=net.layers[0], outputs=net.layers[-1],
        functions="\n".join(f'    "{name}": lambda z: {_NUMPY[name]},' for name in used),
        theta=textwrap.fill(base64.b64encode(little.tobytes()).decode(), 120), dtype=little.dtype.str,
    )  # fmt: skip


# -- PyTorch -------------------------------------------------------------------------------------------------------------


def to_torch_state_dict(net: MLP | Any) -> dict[str, np.ndarray[Any, Any]]:
    """The parameters under the names of torch.nn.Sequential(Linear, activation, Linear, ..., Linear), as NumPy arrays.

    "0.weight" (outputs, inputs), "0.bias", "2.weight", ...: Linear is every second module, and the output activation is left
    to the loss, as is usual there.  model.load_state_dict({name: torch.from_numpy(a) for name, a in ....items()})
    """
    net = _network(net)
    weights, biases = net.views(net.backend.to_numpy(net.theta))
    state: dict[str, np.ndarray[Any, Any]] = {}
    for l, (W, b) in enumerate(zip(weights, biases, strict=True)):
        state |= {f"{2 * l}.weight": np.ascontiguousarray(W.T), f"{2 * l}.bias": b.copy()}
    return state


def from_torch_state_dict(state: Mapping[str, Any], **options: Any) -> MLP:
    """A network with the parameters of a torch.nn.Sequential of Linear layers, and modules without parameters between them.

    state      model.state_dict(), its values tensors or NumPy arrays; torch is not imported
    options    of MLP, beside the layers: activation and loss are not in a state_dict.  dtype is that of the first weights

    Layers are in the order of the names in `state`; a Linear without bias gets one of 0.
    ValueError, TypeError: a parameter that is no Linear layer's, or layers that do not follow one another.
    """
    arrays = {str(name): _host(value, str(name)) for name, value in state.items()}
    weights = {name: array for name, array in arrays.items() if re.fullmatch(r"(.*\.)?weight", name)}
    biases = {re.sub(r"weight$", "bias", name): name for name in weights}
    for name, array in arrays.items():
        if array.ndim != (2 if name in weights else 1 if name in biases else None):
            raise ValueError(f"{name} has shape {array.shape}; expected a weight (outputs, inputs) or bias of a Linear layer")
    if not weights:
        raise ValueError("state holds no weights; expected those of a torch.nn.Sequential of Linear layers")
    units = [next(iter(weights.values())).shape[1]]
    for (name, W), bias in zip(weights.items(), biases, strict=True):
        if W.shape[1] != units[-1]:
            raise ValueError(f"{name} takes {W.shape[1]} inputs, but the layer before it has {units[-1]} outputs")
        if bias in arrays and arrays[bias].shape != (len(W),):
            raise ValueError(f"{bias} has shape {arrays[bias].shape}; expected ({len(W)},)")
        units.append(len(W))
    dtype = np.float64 if next(iter(weights.values())).dtype == np.float64 else np.float32
    net = MLP(units, **{"dtype": dtype, **options})
    for l, (W, bias) in enumerate(zip(weights.values(), biases, strict=True)):
        net.weights[l] = np.ascontiguousarray(W.T, net.dtype)
        net.biases[l] = np.ascontiguousarray(arrays.get(bias, np.zeros(len(W))), net.dtype)
    return net


def _host(value: Any, name: str) -> np.ndarray[Any, Any]:
    """A tensor or array as a NumPy array."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        value = value if value.dtype.itemsize >= 4 else value.float()  # bfloat16 has no counterpart in NumPy
        value = value.numpy()
    return as_numbers(value, name)
