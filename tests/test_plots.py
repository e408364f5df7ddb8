"""Pictures show the numbers they are asked to show, on the axes they are given."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import bpgpu
from bpgpu import History, health, plots

matplotlib = pytest.importorskip("matplotlib", reason="matplotlib is not installed (the extra plots)")
matplotlib.use("Agg")
import matplotlib.pyplot as plt  # noqa: E402

ALL = [plots.losses, plots.gradient_flow, plots.saturation, plots.update_ratios]


@pytest.fixture(autouse=True)
def closed() -> Any:
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def trained() -> tuple[bpgpu.MLP, History]:
    rng = np.random.default_rng(0)
    X, y = rng.standard_normal((9000, 12)), rng.integers(0, 3, 9000)
    net = bpgpu.MLP([12, 20, 9, 3], activation=["relu", "tanh"])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(health, "SHARE", 1e-9)
        return net, net.fit(X, y, epochs=3, validation_data=(X[:50], y[:50]))


def lines(ax: Any) -> dict[str, list[float]]:
    return {line.get_label(): list(line.get_ydata()) for line in ax.get_lines()}


def test_losses(trained: tuple[bpgpu.MLP, History]) -> None:
    shown = lines(plots.losses(trained[1]))
    assert shown["training"] == trained[1].loss and shown["validation"] == trained[1].validation_loss
    assert set(shown) == {"training", "validation", "best epoch"}


def test_what_health_says(trained: tuple[bpgpu.MLP, History]) -> None:
    seen = trained[1].health
    assert len(seen) == 3
    for picture, labels in (
        (plots.gradient_flow, {"|δ| layer {}": "delta", "|dW| layer {}": "gradient"}),
        (plots.saturation, {"saturated, layer {}": "saturated", "dead, layer {}": "dead"}),
        (plots.update_ratios, {"layer {}": "update"}),
    ):
        ax = picture(trained[1])
        expected = {
            label.format(l): [getattr(h, name)[l] for h in seen]
            for label, name in labels.items()
            for l in range(len(getattr(seen[0], name)))
        }
        assert lines(ax) == expected and list(ax.get_lines()[0].get_xdata()) == [1, 2, 3]
        colours = [line.get_color() for line in ax.get_lines()]
        assert len(labels) == 1 or colours[: len(colours) // 2] == colours[len(colours) // 2 :]
    assert plots.gradient_flow(trained[1]).get_yscale() == "log"


def test_filters(trained: tuple[bpgpu.MLP, History]) -> None:
    net = trained[0]
    image = np.asarray(plots.filters(net, shape=(3, 4), count=7).images[0].get_array())
    assert image.shape == (3 * 4 - 1, 3 * 5 - 1)
    np.testing.assert_array_equal(image[4:7, 5:9], net.weights[0][:, 4].reshape(3, 4))  # the fifth: row 1, column 1
    assert len(np.asarray(plots.filters(bpgpu.MLP([9, 100, 2])).images[0].get_array())) == 8 * 4 - 1
    with pytest.raises(ValueError, match=r"12 inputs are no image of 3 x 3; pass shape"):
        plots.filters(net)


@pytest.mark.parametrize("picture", [*ALL, lambda history, ax: plots.filters(bpgpu.MLP([9, 5, 2]), ax)])
def test_axes_are_taken_and_returned(picture: Callable[..., Any], trained: tuple[bpgpu.MLP, History]) -> None:
    figure, (left, right) = plt.subplots(1, 2)
    assert picture(trained[1], right) is right and not left.has_data() and right.has_data()
    figure.canvas.draw()


def test_a_history_without_epochs_is_refused() -> None:
    for picture in ALL[1:]:
        with pytest.raises(ValueError, match=r"the history has no entry of health: .* this training was too short"):
            picture(History())
    for picture in ALL:
        with pytest.raises(TypeError, match=r"history is a MLP; expected what fit gives"):
            picture(bpgpu.MLP([2, 2]))


def test_networks_of_which_there_is_little_to_draw() -> None:
    """Without hidden layers nothing saturates; in a dead network every gradient is 0, which has no logarithm."""
    X, y = np.ones((20, 2)), np.ones(20)
    linear, dead = bpgpu.MLP([2, 2]), bpgpu.MLP([2, 3, 1], loss="squared_error")
    dead.weights[0], dead.biases[0] = np.zeros((2, 3)), np.full(3, -1.0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(health, "SHARE", 1e-9)
        histories = [net.fit(X, y, epochs=2, optimizer=bpgpu.SGD(0)) for net in (linear, dead)]
    for history in histories:
        for picture in ALL:
            picture(history).figure.canvas.draw()
    assert not plots.saturation(histories[0]).get_lines()
    assert max(lines(plots.update_ratios(histories[1]))["layer 0"]) == 0


@pytest.mark.parametrize("count", [0, -1, 2.5, True])
def test_a_count_of_filters_that_is_none(count: object) -> None:
    with pytest.raises(ValueError, match=f"count is {count}; expected a positive integer"):
        plots.filters(bpgpu.MLP([9, 5, 2]), count=count)  # type: ignore[arg-type]


def test_without_matplotlib_the_extra_is_named() -> None:
    code = (
        "import sys; sys.modules['matplotlib'] = None\nimport bpgpu.plots\n"
        "try: bpgpu.plots.losses(bpgpu.History(loss=[1.0]))\nexcept ImportError as e: print(e)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert said.strip() == "bpgpu.plots needs matplotlib: python -m pip install 'bpgpu[plots]'"
