"""The certificate: it passes here, and it catches what is planted: wrong kernels, and right ones whose bits move."""

from __future__ import annotations

import itertools
import json
import re
import time
from typing import Any

import numpy as np
import pytest

import bpgpu
from bpgpu import checkpoint
from bpgpu.certificate import Check, certify, report
from bpgpu.cli import main
from bpgpu.cpu import CPUBackend
from bpgpu.cuda import CUDABackend

BITS = {"run to run", "batch position", "threads", "resume"}
TRUTH = {"true gradients", "plain NumPy", "training step", "adjoint", "single examples"}


def failed(checks: list[Check]) -> set[str]:
    return {check.name for check in checks if check.passed is False}


def test_this_machine_passes(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == "everything that can be checked here holds" and len(lines) == 12
    table = {line[:18].strip(): line[18:].split()[:4] for line in lines[1:-1]}
    for name in TRUTH | BITS:
        verdict, worst, limit, seconds = table[name]
        assert verdict == "pass" and 0 <= float(worst) <= float(limit) and float(seconds) >= 0
        assert (float(limit) == 0) == (name in BITS)
    assert table["CPU and GPU"][0] == ("pass" if bpgpu.backends()["cuda"] == "available" else "-")
    begun = time.perf_counter()
    certify()
    assert time.perf_counter() - begun < 20  # seconds; it is two on an idle machine, its kernels compiled


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check", "--json"]) == 0
    certificate = json.loads(capsys.readouterr().out)
    assert certificate["passed"] is True and certificate["bpgpu"] == bpgpu.__version__ and certificate["threads"] >= 1
    assert {c["name"] for c in certificate["checks"]} == TRUTH | BITS | {"CPU and GPU"}
    assert certificate["backends"] == bpgpu.backends() and isinstance(certificate["blas"], str) and certificate["blas"]
    assert (certificate["gpu"] is None) == (bpgpu.backends()["cuda"] != "available")
    assert main(["info"]) == 0
    assert certificate["blas"] in capsys.readouterr().out
    gpu = certificate["checks"][-1]
    assert gpu["passed"] is True or (gpu["passed"] is None and gpu["what"].startswith("not available: "))


def test_a_gpu_that_agrees_and_one_that_does_not(exact_cuda: CUDABackend, monkeypatch: pytest.MonkeyPatch) -> None:
    gpu = CUDABackend(exact_cuda.device)
    agreed = certify(gpu=gpu)[-1]
    assert agreed.name == "CPU and GPU" and agreed.passed and agreed.worst == 0
    right = gpu._launch_product
    monkeypatch.setattr(gpu, "_launch_product", swapped(right, "hidden_delta", {"tanh": "sigmoid"}))
    checks = certify(gpu=gpu)
    assert failed(checks) == {"CPU and GPU"} and checks[-1].worst is not None and checks[-1].worst > 1000


def swapped(right: Any, name: str, options: dict[str, str]) -> Any:
    """The launch of products with another kernel in place of the right one."""

    def wrong(*arguments: Any) -> None:
        if name in arguments[:2]:
            place = arguments.index(name) + 2
            arguments = (*arguments[:place], options.get(arguments[place], arguments[place]), *arguments[place + 1 :])
        right(*arguments)

    return wrong


@pytest.mark.parametrize(
    ("operation", "options", "caught"),
    [
        ("hidden_delta", {"tanh": "sigmoid"}, {"true gradients", "plain NumPy", "training step"}),  # a wrong f'
        ("dense_forward", {"tanh": "relu"}, {"true gradients", "plain NumPy", "training step"}),  # another f than its f'
        ("hidden_delta", {"gelu": "identity"}, {"true gradients"}),
        ("hidden_delta", {"silu": "sigmoid"}, {"true gradients"}),
        ("hidden_delta", {"softplus": "tanh"}, {"true gradients"}),
        ("dense_gradient", {"sgd": "add"}, {"training step"}),  # uphill
        ("dense_gradient", {"momentum": "sgd"}, {"training step"}),
        ("dense_gradient", {"nesterov": "momentum"}, {"training step"}),
        ("dense_gradient", {"adam": "rmsprop"}, {"training step"}),
    ],
)
def test_a_wrong_kernel_is_caught(
    operation: str,
    options: dict[str, str],
    caught: set[str],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    right = CPUBackend._launch_gradient

    def wrong_rule(self: CPUBackend, dtype: str, rule: str, *arguments: Any) -> None:
        right(self, dtype, options.get(rule, rule), *arguments)

    if operation == "dense_gradient":
        monkeypatch.setattr(CPUBackend, "_launch_gradient", wrong_rule)
    else:
        monkeypatch.setattr(CPUBackend, "_launch_product", swapped(CPUBackend._launch_product, operation, options))
    assert main(["check"]) == 1
    out = capsys.readouterr().out
    assert set(out.splitlines()[-1].removeprefix("FAILED: ").split(", ")) == caught
    for name in caught:
        assert re.search(rf"^{name} +FAIL", out, re.M)


def test_json_says_it_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    wrong = swapped(CPUBackend._launch_product, "hidden_delta", {"tanh": "sigmoid"})
    monkeypatch.setattr(CPUBackend, "_launch_product", wrong)
    assert main(["check", "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["passed"] is False


def test_a_wrong_slope_of_a_loss_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = CPUBackend._output_delta

    def wrong(self: CPUBackend, Z: Any, y: Any, loss: str, f: str, scale: Any, dZ: Any, losses: Any) -> None:
        right(self, Z, y, loss, f, scale, dZ, losses)
        if loss == "huber":  # its slope is not cut off; the loss is right
            right(self, Z, y, "squared_error", f, scale, dZ, losses.copy())

    monkeypatch.setattr(CPUBackend, "_output_delta", wrong)
    assert failed(certify()) == {"true gradients"}


@pytest.mark.parametrize("forgotten", ["state", "epoch", "steps", "steps_taken"])
def test_a_resume_that_forgets_is_caught(forgotten: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = checkpoint.load_run

    def wrong(path: Any) -> Any:
        header, tensors = right(path)
        kept = {name: array for name, array in tensors.items() if forgotten != "state" or not name.startswith("state.")}
        assert len(kept) < len(tensors) or header[forgotten] > 0
        return header | ({forgotten: 0} if forgotten in header else {}), kept

    monkeypatch.setattr(checkpoint, "load_run", wrong)
    assert failed(certify()) == {"resume"}


def disturbed(monkeypatch: pytest.MonkeyPatch, when: Any) -> None:
    """dW of the CPU backend off by one unit in the last place, where `when` says so."""
    right = CPUBackend._dense_update

    def wrong(self: CPUBackend, X: Any, dZ: Any, W: Any, *rest: Any) -> None:
        if self.recorder is not None and when(self, X):
            W[0, 0] = np.nextafter(W[0, 0], np.inf, dtype=W.dtype)
        right(self, X, dZ, W, *rest)

    monkeypatch.setattr(CPUBackend, "_dense_update", wrong)


def test_one_bit_that_depends_on_the_threads_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    disturbed(monkeypatch, lambda backend, X: backend.threads == 3)
    assert failed(certify()) == {"threads"}


def test_one_bit_that_changes_from_run_to_run_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    count = itertools.count()
    disturbed(monkeypatch, lambda backend, X: next(count) % 5 == 0)
    assert {"run to run", "threads", "resume"} >= failed(certify()) >= {"run to run"}


def test_a_wrong_norm_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = CPUBackend._example_norms

    def wrong(self: CPUBackend, X: Any, dZ: Any, norms: Any, add: bool) -> None:
        right(self, X, dZ, norms, add)
        norms *= 1.0001

    monkeypatch.setattr(CPUBackend, "_example_norms", wrong)
    assert failed(certify()) == {"single examples"}


def test_a_reverse_that_is_no_adjoint_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    right = CPUBackend._hidden_delta

    def wrong(self: CPUBackend, dZ: Any, W: Any, saved: Any, activation: str, dZ_below: Any) -> None:
        right(self, dZ, W, saved, activation, dZ_below)
        if activation == "identity" and W.shape[0] == 19:  # dC/dx alone
            dZ_below *= 1 + 1e-9

    monkeypatch.setattr(CPUBackend, "_hidden_delta", wrong)
    assert failed(certify()) == {"adjoint"}


def test_an_operation_that_raises_or_gives_nan_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: CPUBackend, *arguments: Any) -> None:
        raise RuntimeError("no such kernel")

    with monkeypatch.context() as patch:
        patch.setattr(CPUBackend, "_dense_update", broken)
        checks = certify()
    assert failed(checks) == {"training step", "run to run", "threads", "resume"}
    assert "RuntimeError: no such kernel" in report(checks)
    right = CPUBackend._example_norms

    def nan(self: CPUBackend, X: Any, dZ: Any, norms: Any, add: bool) -> None:
        right(self, X, dZ, norms, add)
        norms[0] = np.nan

    with monkeypatch.context() as patch:
        patch.setattr(CPUBackend, "_example_norms", nan)
        assert failed(certify()) == {"single examples"}
    product = CPUBackend._hidden_delta

    def nan_of_silu(self: CPUBackend, dZ: Any, W: Any, saved: Any, activation: str, dZ_below: Any) -> None:
        product(self, dZ, W, saved, activation, dZ_below)
        if activation == "silu":  # neither the first case nor the last one
            dZ_below[0] = np.nan

    monkeypatch.setattr(CPUBackend, "_hidden_delta", nan_of_silu)
    assert failed(certify()) == {"true gradients"}
