"""Images distorted anew in every batch: elastic and affine (Simard, Steinkraus and Platt, ICDAR 2003).  Needs SciPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from .checks import amount

Array = np.ndarray[Any, Any]


class Distort:
    """A transform of batches for fit: net.fit(X, y, transform=bpgpu.Distort()).

    Each image is looked up at other places, between pixels by bilinear interpolation, 0 beyond its edge:

        image'(p) = image(c + A (p - c) + t + alpha (G_sigma * U)(p))        c the centre of the image

    shape        rows and columns of the images, of which X (n, rows * columns) holds one a row
    alpha        elastic: pixels by which a field U, uniform from (-1, 1) for each pixel and direction, moves them after it has
                 been smoothed by a Gaussian G of deviation
    sigma        in pixels; alpha 34 and sigma 4 are the paper's for MNIST; alpha 0 leaves this out
    rotation     A turns by an angle uniform from (-rotation, rotation) degrees,
    scale        scales rows and columns by factors uniform from (1 - scale, 1 + scale)
    shear        and shears by a factor uniform from (-shear, shear)
    translation  t is uniform from (-translation, translation) pixels in either direction

    What is drawn comes from the generator that fit gives with the batch, a function of the network's seed, the epoch and the
    step alone.  ImportError: SciPy is not installed.  ValueError: a number is not what it should be.
    """

    def __init__(
        self, shape: tuple[int, int] = (28, 28), *, alpha: float = 34.0, sigma: float = 4.0, rotation: float = 0.0,
        scale: float = 0.0, shear: float = 0.0, translation: float = 0.0,
    ) -> None:  # fmt: skip
        try:
            import scipy.ndimage  # noqa: F401
        except ImportError as error:
            raise ImportError(f"distortions need SciPy ({error}); python -m pip install 'bpgpu[scipy]'") from error
        if len(shape) != 2 or not all(isinstance(size, (int, np.integer)) and size > 0 for size in shape):
            raise ValueError(f"shape is {shape!r}; expected (rows, columns) of an image, two positive integers")
        self.shape = int(shape[0]), int(shape[1])
        self.alpha, self.sigma, self.rotation = amount("alpha", alpha), amount("sigma", sigma), amount("rotation", rotation)
        self.scale, self.shear, self.translation = (
            amount("scale", scale),
            amount("shear", shear),
            amount("translation", translation),
        )
        if self.scale >= 1:
            raise ValueError(f"scale is {scale!r}; expected less than 1, for example 0.15")

    def __call__(self, X: Array, rng: np.random.Generator) -> Array:
        """Images X (n, rows * columns), distorted, of the same dtype.  ValueError: X has other columns."""
        from scipy.ndimage import map_coordinates

        n, (rows, columns) = len(X), self.shape
        if X.shape[1:] != (rows * columns,):
            raise ValueError(f"X has shape {X.shape}; expected images of {rows} x {columns}, {rows * columns} columns")
        y, x = np.meshgrid(np.arange(rows, dtype=np.float32), np.arange(columns, dtype=np.float32), indexing="ij")
        centre = np.array([(rows - 1) / 2, (columns - 1) / 2], np.float32)
        places = np.stack([y, x], axis=-1) - centre  # p - c (rows, columns, 2)
        A, t = self._affine(n, rng)
        moved = np.einsum("nij,rcj->nirc", A, places) + (t + centre)[:, :, None, None]
        if self.alpha:
            moved += self._field(n, rng)
        number = np.broadcast_to(np.arange(n, dtype=np.float32)[:, None, None], (n, rows, columns))
        at = np.stack([number, moved[:, 0], moved[:, 1]])
        images = X.reshape(n, rows, columns)
        return map_coordinates(images, at, order=1, mode="constant", prefilter=False).reshape(n, -1)  # type: ignore[no-any-return]

    def _affine(self, n: int, rng: np.random.Generator) -> tuple[Array, Array]:
        """A (n, 2, 2) and t (n, 2)."""
        angle, shear = (rng.uniform(-size, size, n) for size in (np.deg2rad(self.rotation), self.shear))
        scale = rng.uniform(1 - self.scale, 1 + self.scale, (n, 2))
        sine, cosine = np.sin(angle), np.cos(angle)
        turn = np.stack([cosine, -sine, sine, cosine], axis=1).reshape(n, 2, 2)
        skew = np.stack([np.ones(n), np.zeros(n), shear, np.ones(n)], axis=1).reshape(n, 2, 2)
        t = rng.uniform(-self.translation, self.translation, (n, 2))
        return (np.einsum("nij,njk->nik", turn, skew) * scale[:, None, :]).astype(np.float32), t.astype(np.float32)

    def _field(self, n: int, rng: np.random.Generator) -> Array:
        """alpha (G_sigma * U), (n, 2, rows, columns)."""
        from scipy.ndimage import gaussian_filter1d

        field = 2 * rng.random((n, 2, *self.shape), np.float32) - 1
        for axis in (2, 3):
            field = gaussian_filter1d(field, self.sigma, axis, mode="constant") if self.sigma else field
        return field * np.float32(self.alpha)
