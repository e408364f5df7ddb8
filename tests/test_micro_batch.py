"""micro_batch is memory, not mathematics: no bit depends on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conftest import cpu_backend
from test_dropout import emulated

import bpgpu
from bpgpu import MLP, SGD, Adam

N = 1300
RNG = np.random.default_rng(0)
X, Y, WEIGHT = RNG.standard_normal((N, 7)), RNG.integers(0, 3, N), RNG.random(N)
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "weights": ({}, {"sample_weight": WEIGHT}),
    "dropout": ({"dropout": [0.1, 0.5, 0.3], "activation": ["gelu", "relu"]}, {}),
    "clip": ({}, {"optimizer": lambda: SGD(0.1, 0.9, clip_norm=0.1, max_norm=2.0)}),
    "adam, targets": ({"loss": "huber"}, {"optimizer": lambda: Adam(0.01)}),
}


def trained(backend: Any, case: str, batch_size: int, micro: int | None, dtype: str = "float32", **more: Any) -> Any:
    of_net, of_fit = CASES[case]
    net = MLP([7, 12, 9, 3], **{"activation": "tanh", "backend": backend, "dtype": dtype, "seed": 2, **of_net})
    options = {**of_fit, "optimizer": of_fit.get("optimizer", lambda: SGD(0.1, 0.9))()}
    history = net.fit(X, Y, epochs=2, batch_size=batch_size, micro_batch=micro, **options, **more)
    return net.backend.to_numpy(net.theta).tobytes(), history.loss


@pytest.mark.parametrize("dtype_", ["float32", "float64"])
@pytest.mark.parametrize("case", CASES)
def test_no_bit_depends_on_it(case: str, dtype_: str) -> None:
    for batch_size in (1300, 600, 257):
        expected = trained(cpu_backend(2), case, batch_size, None, dtype_)
        for micro in (256, 512, 1280):
            assert trained(cpu_backend(2), case, batch_size, micro, dtype_) == expected, (batch_size, micro)


@pytest.mark.parametrize("case", ["dropout", "weights"])
def test_nor_on_the_other_backend(case: str) -> None:
    expected = trained(cpu_backend(1), case, 600, None)
    assert trained(emulated(), case, 600, 256) == expected


def test_it_uses_less_memory() -> None:
    from bpgpu.training import Step

    net = MLP([7, 12, 9, 3])
    whole, parts = Step(net, 4096, True, False), Step(net, 4096, True, False, 256)
    assert whole.a[1].nbytes == 16 * parts.a[1].nbytes and whole.room[0].nbytes == 16 * parts.room[0].nbytes


def test_a_run_may_be_resumed_with_another(tmp_path: Any) -> None:
    expected = trained(cpu_backend(1), "plain", 600, None)
    net = MLP([7, 12, 9, 3], activation="tanh", seed=2)
    net.fit(X, Y, epochs=1, batch_size=600, optimizer=SGD(0.1, 0.9), callbacks=bpgpu.Checkpoint(tmp_path / "c"))
    assert trained(cpu_backend(1), "plain", 600, 256, resume=tmp_path / "c") == expected


@pytest.mark.parametrize("micro", [0, 100, -256, 256.0, "256"])
def test_bad_sizes(micro: Any) -> None:
    with pytest.raises(ValueError, match=r"micro_batch is .*; expected a multiple of 256, or None"):
        MLP([7, 3]).fit(X, Y, micro_batch=micro)
