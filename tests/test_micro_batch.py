"""micro_batch is memory, not mathematics: no bit depends on it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from conftest import cpu_backend

import bpgpu
from bpgpu import MLP, SGD, Adam
from bpgpu.backend import Backend

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
def test_nor_on_the_other_backend(exact_cuda: Backend, case: str) -> None:
    expected = trained(cpu_backend(1), case, 600, None)
    assert trained(exact_cuda, case, 600, 256) == expected


def test_it_uses_less_memory() -> None:
    from bpgpu.training import Step

    net = MLP([7, 12, 9, 3])
    whole, parts = Step(net, 4096, True, False), Step(net, 4096, True, False, micro=256)
    assert whole.a[1].nbytes == 16 * parts.a[1].nbytes and whole.delta[0].nbytes == 16 * parts.delta[0].nbytes


def test_a_run_may_be_resumed_with_another(tmp_path: Any) -> None:
    expected = trained(cpu_backend(1), "plain", 600, None)
    net = MLP([7, 12, 9, 3], activation="tanh", seed=2)
    net.fit(X, Y, epochs=1, batch_size=600, optimizer=SGD(0.1, 0.9), callbacks=bpgpu.Checkpoint(tmp_path / "c"))
    assert trained(cpu_backend(1), "plain", 600, 256, resume=tmp_path / "c") == expected


@pytest.mark.parametrize("micro", [0, 100, -256, 256.0, "256"])
def test_bad_sizes(micro: Any) -> None:
    with pytest.raises(ValueError, match=r"micro_batch is .*; expected a multiple of 256, or None"):
        MLP([7, 3]).fit(X, Y, micro_batch=micro)


@pytest.mark.parametrize("clip", [None, 0.5])
def test_data_that_stream_to_a_gpu(clip: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    from bpgpu import epochs
    from bpgpu.cuda import CUDABackend
    from tests.emulator import available
    from tests.emulator.gpu import GPU

    if available() is not None:
        pytest.skip(f"no emulator here: {available()}")
    rng = np.random.default_rng(1)
    data = rng.standard_normal((1700, 60)), rng.integers(0, 3, 1700)
    stayed: dict[str, bool] = {}
    run = epochs.Epochs.run

    def watched(self: epochs.Epochs, *span: int) -> Iterator[tuple[int, int | None]]:
        stayed[self.net.backend.name] = self.resident
        return run(self, *span)

    monkeypatch.setattr(epochs.Epochs, "run", watched)
    ends = []
    for backend, micro in ((cpu_backend(1), None), (CUDABackend(GPU(limit=700_000)), 256)):
        net = MLP([60, 12, 3], backend=backend, seed=2, dropout=0.3)
        net.fit(*data, epochs=2, batch_size=400, micro_batch=micro, optimizer=Adam(0.01), clip_per_example=clip)
        ends.append(net.backend.to_numpy(net.theta).tobytes())
    assert ends[0] == ends[1] and stayed == {"cpu": True, "cuda": False}
