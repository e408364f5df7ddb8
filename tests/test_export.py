"""Networks for others: what ONNX's reference, onnxruntime, plain NumPy and PyTorch compute is what the network computes."""

from __future__ import annotations

import ast
import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bpgpu
from bpgpu.cli import main

OUTPUTS = {"cross_entropy": "softmax", "binary_cross_entropy": "sigmoid", "squared_error": "identity"}


def network(activation: Any, dtype: Any = "float32", loss: str = "cross_entropy", **options: Any) -> bpgpu.MLP:
    net = bpgpu.MLP([5, 8, 7, 3], activation=activation, loss=loss, dtype=dtype, seed=3, backend="numpy", **options)
    rng = np.random.default_rng(1)
    for l in range(3):
        net.weights[l] = net.weights[l] * 2
        net.biases[l] = rng.standard_normal(net.biases[l].shape)
    return net


def inputs(dtype: Any = "float32") -> np.ndarray:
    """Most are ordinary, some so large that an exp without care would overflow."""
    X = np.random.default_rng(0).standard_normal((9, 5)) * 3
    X[-1] *= 200
    return X.astype(dtype)


def close(found: np.ndarray, net: bpgpu.MLP, X: np.ndarray) -> None:
    assert found.dtype == net.dtype and found.shape == (len(X), 3)
    eps = np.finfo(net.dtype).eps
    with np.errstate(over="ignore"):
        a = net.outputs(X)
    np.testing.assert_allclose(found, a, rtol=60 * eps, atol=60 * eps * max(1, abs(a).max()))


def reference(model: Any, X: np.ndarray) -> list[np.ndarray]:
    """What onnx's own evaluator gives, in plain NumPy; its exp may overflow on the way to a right result."""
    from onnx.reference import ReferenceEvaluator

    with np.errstate(all="ignore"):
        return ReferenceEvaluator(model).run(["output"], {"X": X})


ALL = pytest.mark.parametrize("activation", bpgpu.ACTIVATIONS)


@ALL
@pytest.mark.parametrize("loss", OUTPUTS)
def test_onnx(activation: str, loss: str, dtype: np.dtype) -> None:
    onnx = pytest.importorskip("onnx")
    net, X = network(activation, dtype, loss), inputs(dtype)
    content = bpgpu.to_onnx(net)
    model = onnx.load_from_string(content)
    assert {entry.domain for entry in model.opset_import} == {""}
    (found,) = reference(model, X)
    if activation == "gelu" and dtype == np.float64:  # onnx's reference makes erf of six-digit constants
        with np.errstate(over="ignore"):
            np.testing.assert_allclose(found, net.outputs(X), rtol=1e-6, atol=1e-6)
    else:
        close(found, net, X)
        runtime = pytest.importorskip("onnxruntime")
        session = runtime.InferenceSession(content, providers=["CPUExecutionProvider"])
        close(session.run(["output"], {"X": X})[0], net, X)
        close(session.run(["output"], {"X": X[:1]})[0], net, X[:1])  # any number of rows


def test_onnx_of_different_layers_with_classes() -> None:
    onnx = pytest.importorskip("onnx")
    net = network(["scaled_tanh", "scaled_tanh"])
    net.classes = ("ant", "bee", "cät")
    model = onnx.load_from_string(bpgpu.to_onnx(net))
    assert json.loads({p.key: p.value for p in model.metadata_props}["classes"]) == ["ant", "bee", "cät"]
    close(reference(model, inputs())[0], net, inputs())
    net = bpgpu.MLP([5, 3], seed=1)
    close(reference(onnx.load_from_string(bpgpu.to_onnx(net)), inputs())[0], net, inputs())


def test_onnx_without_the_package(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(ImportError, match=r"bpgpu\[onnx\]"):
        bpgpu.to_onnx(network("relu"))


@ALL
@pytest.mark.parametrize("loss", OUTPUTS)
def test_numpy_function(activation: str, loss: str, dtype: np.dtype) -> None:
    net, X = network(activation, dtype, loss), inputs(dtype)
    names: dict[str, Any] = {}
    with np.errstate(all="raise", under="ignore"):
        exec(bpgpu.to_numpy_function(net), names)
        close(names["outputs"](X), net, X)
    with pytest.raises(ValueError, match=r"X has shape \(9, 4\); expected \(rows, 5\)"):
        names["outputs"](X[:, 1:])


def test_numpy_function_needs_numpy_alone(tmp_path: Path) -> None:
    net, X = network(["gelu", "relu"]), inputs()
    net.classes = ('a"b', "c\\d", "é")
    source = bpgpu.to_numpy_function(net)
    imported = {alias.name for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import) for alias in node.names}
    assert imported == {"base64", "math", "numpy"} and "ImportFrom" not in ast.dump(ast.parse(source))
    (tmp_path / "model.py").write_text(source, encoding="utf-8")
    np.save(tmp_path / "X.npy", X)
    code = (
        "import numpy as np, model, sys; np.save('a.npy', model.outputs(np.load('X.npy')))\n"
        "assert model.CLASSES == ['a\"b', 'c\\\\d', '\\u00e9'] and 'bpgpu' not in sys.modules and 'numba' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True, timeout=60)
    close(np.load(tmp_path / "a.npy"), net, X)


def test_torch_state_dict_there_and_back() -> None:
    net = network(["tanh", "relu"])
    state = bpgpu.to_torch_state_dict(net)
    assert list(state) == ["0.weight", "0.bias", "2.weight", "2.bias", "4.weight", "4.bias"]
    assert state["2.weight"].shape == (7, 8)
    np.testing.assert_array_equal(state["2.weight"], net.weights[1].T)
    before = net.theta.copy()
    state["0.bias"][:] = 0  # a copy
    np.testing.assert_array_equal(net.theta, before)
    again = bpgpu.from_torch_state_dict(bpgpu.to_torch_state_dict(net), activation=["tanh", "relu"], seed=9, backend="numpy")
    np.testing.assert_array_equal(again.outputs(inputs()), net.outputs(inputs()))
    assert again.dtype == np.float32 and again.seed == 9
    assert bpgpu.from_torch_state_dict(bpgpu.to_torch_state_dict(network("relu", "float64"))).dtype == np.float64


def test_torch_state_dict_under_other_names_and_without_bias() -> None:
    W = np.arange(6.0, dtype=np.float32).reshape(2, 3)
    net = bpgpu.from_torch_state_dict({"body.1.weight": W, "body.4.weight": W[:, :2], "body.4.bias": W[:, 0]})
    assert net.layers == (3, 2, 2) and not net.biases[0].any()
    np.testing.assert_array_equal(net.weights[1], W[:, :2].T)


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({}, "state holds no weights"),
        ({"0.weight": (4, 3, 3)}, r"0\.weight has shape \(4, 3, 3\); expected a weight \(outputs, inputs\) or bias"),
        ({"0.weight": (4, 3), "1.weight": (4,), "1.bias": (4,)}, r"1\.weight has shape \(4,\)"),
        ({"0.weight": (4, 3), "1.running_mean": (4,)}, r"1\.running_mean has shape"),
        ({"0.weight": (4, 3), "2.weight": (2, 5)}, r"2\.weight takes 5 inputs, but the layer before it has 4 outputs"),
        ({"0.weight": (4, 3), "0.bias": (3,)}, r"0\.bias has shape \(3,\); expected \(4,\)"),
    ],
)
def test_torch_state_dict_refused(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        bpgpu.from_torch_state_dict({name: np.ones(shape, np.float32) for name, shape in shapes.items()})


def test_torch_computes_the_same() -> None:
    torch = pytest.importorskip("torch")
    modules = {
        "identity": torch.nn.Identity, "sigmoid": torch.nn.Sigmoid, "tanh": torch.nn.Tanh, "relu": torch.nn.ReLU,
        "leaky_relu": torch.nn.LeakyReLU, "elu": torch.nn.ELU, "selu": torch.nn.SELU, "gelu": torch.nn.GELU,
        "silu": torch.nn.SiLU, "softplus": torch.nn.Softplus,
    }  # fmt: skip
    for name, module in modules.items():
        model = torch.nn.Sequential(
            torch.nn.Linear(5, 8), module(), torch.nn.Linear(8, 7, bias=False), module(), torch.nn.Linear(7, 3)
        )
        X = inputs()[:-1]
        net = bpgpu.from_torch_state_dict(model.state_dict(), activation=name, loss="squared_error")
        with torch.no_grad():
            np.testing.assert_allclose(net.outputs(X), model(torch.from_numpy(X)).numpy(), rtol=1e-5, atol=1e-5)
        net = network(name, loss="squared_error")
        model[2] = torch.nn.Linear(8, 7)
        model.load_state_dict({key: torch.from_numpy(value) for key, value in bpgpu.to_torch_state_dict(net).items()})
        with torch.no_grad():
            close(model(torch.from_numpy(X)).numpy(), net, X)
    half = {key: value.to(torch.bfloat16) for key, value in model.state_dict().items()}
    assert bpgpu.from_torch_state_dict(half).dtype == np.float32


def test_torch_is_not_imported() -> None:
    code = (
        "import sys, numpy as np, bpgpu; state = bpgpu.to_torch_state_dict(bpgpu.MLP([2, 3, 2], backend='numpy'));"
        "bpgpu.from_torch_state_dict(state, backend='numpy'); print('torch' in sys.modules, 'onnx' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.split() == ["False", "False"]


def test_fitted_estimators_go_out_with_the_names_of_their_classes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("sklearn")
    X, options = inputs(), {"hidden_layer_sizes": (4,), "random_state": 0}
    for names in (["ant", "bee", "cät"] * 3, ["no", "yes", "no"] * 3):
        clf, module = bpgpu.MLPClassifier(**options).partial_fit(X, names, classes=names), {}
        exec(bpgpu.to_numpy_function(clf), module)
        assert module["CLASSES"] == list(clf.classes_)
        np.testing.assert_allclose(module["outputs"](X)[:, -1], clf.predict_proba(X)[:, -1], rtol=1e-4, atol=1e-6)
        assert bpgpu.to_torch_state_dict(clf)["0.weight"].shape == (4, 5)
        clf.network_.save(tmp_path / "model.safetensors")
        np.save(tmp_path / "X.npy", X)
        assert main(["predict", str(tmp_path / "model.safetensors"), str(tmp_path / "X.npy")]) == 0
        assert capsys.readouterr().out.split() == list(clf.predict(X))
    assert bpgpu.MLPRegressor(**options).partial_fit(X, X).network_.classes is None
    if importlib.util.find_spec("onnx"):
        import onnx

        model = onnx.load_from_string(bpgpu.to_onnx(clf))
        assert json.loads(model.metadata_props[0].value) == ["no", "yes"]


@pytest.mark.parametrize("export", [bpgpu.to_onnx, bpgpu.to_numpy_function, bpgpu.to_torch_state_dict])
def test_what_is_no_network_is_refused(export: Any) -> None:
    pytest.importorskip("onnx")
    for given in (pytest.importorskip("bpgpu.estimators").MLPClassifier(), np.zeros(3)):
        with pytest.raises(TypeError, match=f"fitted MLPClassifier or MLPRegressor, got a {type(given).__name__}$"):
            export(given)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from safetensors.numpy import load_file

    net, X = network("relu"), inputs()
    model = str(tmp_path / "model.safetensors")
    net.save(model)
    for kind in ("onnx", "numpy", "torch"):
        if kind == "onnx":
            pytest.importorskip("onnx")
        assert main(["export", model, "--format", kind, str(tmp_path / kind)]) == 0
        assert capsys.readouterr().out == f"saved {tmp_path / kind}\n"
    assert (tmp_path / "onnx").read_bytes() == bpgpu.to_onnx(net)
    names: dict[str, Any] = {}
    exec((tmp_path / "numpy").read_text(), names)
    close(names["outputs"](X), net, X)
    state = load_file(tmp_path / "torch")
    np.testing.assert_array_equal(bpgpu.from_torch_state_dict(state).theta, net.theta)
    assert main(["export", model, "--format", "onnx", str(tmp_path / "no" / "file")]) == 2
    assert "there is no directory" in capsys.readouterr().err
