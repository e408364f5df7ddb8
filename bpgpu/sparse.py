"""Sparse matrices (scipy.sparse): never dense as a whole, some batches or blocks of rows at a time."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from .backend import Array
from .training import Epochs

if TYPE_CHECKING:
    from .optim import Optimizer
    from .training import Trainer

SLAB_BYTES = 1 << 24  # of dense rows at a time, or one batch, or one row


def is_sparse(X: Any) -> bool:
    return hasattr(X, "toarray") and hasattr(X, "nnz")


def row_blocks(X: Any) -> Iterator[tuple[slice, np.ndarray[Any, Any]]]:
    """All of a dense X; of a sparse one some dense rows at a time."""
    if not is_sparse(X):
        yield slice(0, len(X)), X
        return
    X = X.tocsr()
    rows = max(1, SLAB_BYTES // (X.shape[1] * X.dtype.itemsize))
    for s in range(0, X.shape[0], rows):
        yield slice(s, s + rows), X[s : s + rows].toarray()


class SparseEpochs(Epochs):
    """Epochs over a sparse X (n, inputs): the steps gather from a slab of dense batches, in the order of the epoch."""

    def __init__(
        self, trainer: Trainer, X: Any, y: Array, weight: np.ndarray[Any, Any] | None, batch_size: int, *, squares: bool = False
    ) -> None:
        b, (n, inputs) = trainer.net.backend, X.shape
        self.sparse, batch = X.tocsr().astype(trainer.net.dtype), min(batch_size, n)
        steps = max(1, SLAB_BYTES // (batch * inputs * trainer.net.dtype.itemsize))
        self.slab = min(steps, -(-n // batch))  # steps
        super().__init__(trainer, b.empty((self.slab * batch, inputs), trainer.net.dtype), y, weight, batch, squares=squares)
        self.rows = b.asarray(np.arange(n) % len(self.X))
        self.order_on_host = np.arange(n)

    def begin(self, optimizer: Optimizer, order: np.ndarray[Any, Any], done: int = 0) -> None:
        super().begin(optimizer, order, done)
        self.order_on_host = order

    def run(self, first: int, last: int) -> Iterator[int]:
        while first < last:
            place, end = first % self.slab, min(first - first % self.slab + self.slab, last)
            rows = self.order_on_host[first * self.batch : end * self.batch]
            slab = self.X[place * self.batch : place * self.batch + len(rows)]
            self.net.backend.write(slab, self.sparse[rows].toarray())
            yield from super().run(first, end)
            first = end

    def inputs(self, rows: np.ndarray[Any, Any]) -> Array:
        return self.net.backend.asarray(self.sparse[rows].toarray())
