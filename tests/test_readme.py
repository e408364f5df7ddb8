"""The README's Python runs as it stands there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

README = Path(__file__).parent.parent / "README.md"


@pytest.mark.filterwarnings("ignore:the training has not converged")
def test_the_python_of_the_readme_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.S)
    assert len(blocks) == 6
    rng = np.random.default_rng(0)
    names: dict[str, Any] = {  # what the last block takes for granted
        "X": rng.standard_normal((4, 5)), "W": rng.standard_normal((5, 3)), "b": np.zeros(3), "dZ": rng.standard_normal((4, 3)),
    }  # fmt: skip
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        exec(block.replace("epochs=5", "epochs=1"), names)
    net, data = names["net"], names["data"]
    assert names["history"].validation_accuracy[-1] > 0.8 and (tmp_path / "model.safetensors").exists()
    assert names["search"].best_score_ > 0.75
    assert np.isfinite(net.evaluate(data.X_test, data.y_test)[0])
    np.testing.assert_allclose(names["A"], np.maximum(names["X"] @ names["W"], 0), atol=1e-12)
    np.testing.assert_allclose(names["dW"], names["X"].T @ names["dZ"], atol=1e-12)
