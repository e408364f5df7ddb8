"""Distorted images: known displacements, the size of random ones, and the same bits for the same seed."""

from __future__ import annotations

import math
import sys
from typing import Any

import numpy as np
import pytest

import bpgpu
from bpgpu import Distort, epochs
from bpgpu.cpu import CPUBackend

pytest.importorskip("scipy")
IMAGES = np.random.default_rng(0).random((6, 8 * 8), np.float32).reshape(6, 8, 8)


def flat(images: np.ndarray) -> np.ndarray:
    return images.reshape(len(images), -1)


class Known(Distort):
    """With a displacement that is not at random."""

    def __init__(self, A: Any, t: Any, **options: Any) -> None:
        super().__init__((8, 8), **{"alpha": 0, **options})
        self.A, self.t = np.array(A, np.float32), np.array(t, np.float32)

    def _affine(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return np.tile(self.A, (n, 1, 1)), np.tile(self.t, (n, 1))


def distorted(distort: Distort, images: np.ndarray = IMAGES, seed: int = 0) -> np.ndarray:
    return distort(flat(images), np.random.default_rng(seed)).reshape(images.shape)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_nothing_moves_without_a_displacement(dtype: Any) -> None:
    found = distorted(Distort((8, 8), alpha=0), IMAGES.astype(dtype))
    assert found.dtype == dtype
    np.testing.assert_array_equal(found, IMAGES)


def test_known_displacements() -> None:
    down = distorted(Known(np.eye(2), [-1, 0]))  # image'(p) = image(p - 1)
    np.testing.assert_array_equal(down[:, 1:], IMAGES[:, :-1])
    assert not down[:, 0].any()
    turned = distorted(Known([[0, -1], [1, 0]], [0, 0]))
    expected = np.zeros_like(IMAGES)
    for r in range(8):
        for c in range(8):  # about the centre (3.5, 3.5)
            expected[:, r, c] = IMAGES[:, 7 - c, r]
    np.testing.assert_allclose(turned, expected, atol=1e-6)
    half = distorted(Known(np.eye(2), [0, 0.5]))
    np.testing.assert_allclose(half[:, :, :-1], (IMAGES[:, :, :-1] + IMAGES[:, :, 1:]) / 2, atol=1e-6)


def test_what_is_drawn() -> None:
    distort = Distort(rotation=15, scale=0.2, shear=0.1, translation=2, alpha=0)
    A, t = distort._affine(20000, np.random.default_rng(0))
    size = np.linalg.norm(A[:, :, 1], axis=1)  # of the second column: turned, not sheared
    angle = np.degrees(np.arctan2(-A[:, 0, 1], A[:, 1, 1]))
    for values, low, high in ((size, 0.8, 1.2), (angle, -15, 15), (t[:, 0], -2, 2), (t[:, 1], -2, 2)):
        assert low <= values.min() < low + 0.02 * (high - low) and high - 0.02 * (high - low) < values.max() <= high
        assert abs(values.mean() - (low + high) / 2) < 0.02 * (high - low)
    field = Distort(alpha=34, sigma=4)._field(2000, np.random.default_rng(0))
    inner = field[:, :, 12:16, 12:16]  # a Gaussian's sum of squares is 1 / (4 pi sigma^2); U has variance 1/3
    assert math.isclose(inner.std(), 34 * math.sqrt(1 / 3 / (4 * math.pi * 16)), rel_tol=0.02)
    assert abs(inner.mean()) < 0.02 and abs(np.corrcoef(inner[:, 0, 0, 0], inner[:, 1, 0, 0])[0, 1]) < 0.06


def test_each_image_is_moved_in_a_way_of_its_own_and_stays_with_itself() -> None:
    images = np.zeros((50, 28, 28), np.float32)
    images[::2, 9:19, 9:19] = 1
    found = distorted(Distort(rotation=15, scale=0.15), images)
    assert not found[1::2].any() and (found[::2].sum(axis=(1, 2)) > 30).all()
    assert len({image.tobytes() for image in found[::2]}) == 25
    assert found.min() >= 0 and found.max() <= 1


def test_the_same_seed_gives_the_same_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the number of threads and the sizes of slabs."""
    data = bpgpu.mnist10k()

    def trained(threads: int, seed: int = 3) -> bytes:
        net = bpgpu.MLP([784, 8, 10], seed=seed, backend=CPUBackend(threads=threads))
        net.fit(data.X[:300], data.y[:300], epochs=2, batch_size=64, transform=Distort(rotation=15, scale=0.15))
        return net.theta.tobytes()

    one = trained(1)
    monkeypatch.setattr(epochs, "SLAB_BYTES", 1)
    assert one == trained(3) != trained(1, seed=4)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": (28,)}, r"shape is \(28,\); expected \(rows, columns\)"),
        ({"shape": (28, 0)}, r"shape is \(28, 0\)"),
        ({"alpha": -1}, r"alpha is -1; expected a finite number, 0 or more"),
        ({"sigma": np.nan}, r"sigma is nan"),
        ({"scale": 1}, r"scale is 1; expected less than 1"),
        ({"rotation": "15"}, r"rotation is '15'"),
    ],
)
def test_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Distort(**options)


def test_other_images(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match=r"X has shape \(6, 64\); expected images of 28 x 28, 784 columns"):
        distorted(Distort())
    monkeypatch.setitem(sys.modules, "scipy.ndimage", None)
    with pytest.raises(ImportError, match=r"bpgpu\[scipy\]"):
        Distort()
