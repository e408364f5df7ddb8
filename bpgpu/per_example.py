"""Gradients of single examples, dC^n/dtheta: their norms, themselves, their products, their noise; and clipping them.

In a dense layer dC^n/dW is the outer product a_n delta_n^T, so that norms and inner products need no gradient at all:

    |dC^n/dW|^2 = |a_n|^2 |delta_n|^2                     <dC^n/dW, dC^m/dW> = <a_n, a_m> <delta_n, delta_m>

and for the biases the same with a_n = 1.  C^n is an example's own loss, whatever the network's reduction and weights are.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .backend import Array, Backend
from .checks import check_memory

if TYPE_CHECKING:
    from .mlp import MLP

HostArray = np.ndarray[Any, Any]
BLOCK = 2048  # examples that go through a network at a time, where it does not matter; results do not depend on it


class ExampleNorms(NamedTuple):
    """|dC^n/dtheta| (n,), and layers (n, L): of each layer's weights and biases together."""

    total: HostArray
    layers: HostArray


class NoiseScale(NamedTuple):
    """B = trace / squared_gradient: the simple gradient noise scale, in examples.

    trace             of the covariance of dC^n/dtheta over the examples
    squared_gradient  |dC/dtheta|^2 of the mean over all examples there are, estimated without bias; if it is not positive
                      the gradient cannot be told from noise, and B is infinite
    """

    examples: float
    trace: float
    squared_gradient: float


def clip(b: Backend, a: list[Array], deltas: list[Array], limit: Array, scale: Array) -> None:
    """Scale the rows of every delta so that no example's gradient, over all layers, is longer than limit * its scale."""
    norms = b.example_norms(a[-1], deltas[-1])
    for x, delta in zip(a[:-1], deltas[:-1], strict=True):
        b.example_norms(x, delta, norms=norms, add=True)
    for delta in deltas:
        b.clip_examples(delta, norms, limit, scale)


def check_limit(clip_per_example: float | None) -> float | None:
    if clip_per_example is None:
        return None
    if not isinstance(clip_per_example, (int, float, np.number)) or not 0 < clip_per_example < math.inf:
        raise ValueError(f"clip_per_example is {clip_per_example!r}; expected a finite positive number, or None")
    return float(clip_per_example)


def limit_array(clip_per_example: float | None, dtype: np.dtype[Any]) -> HostArray | None:
    """The limit (1,) as the operations take it, if there is one.  ValueError: it is none in this dtype."""
    limit, bounds = check_limit(clip_per_example), np.finfo(dtype)
    if limit is None:
        return None
    least, most = float(bounds.tiny), float(bounds.max)
    if not least <= limit <= most:
        raise ValueError(f"clip_per_example is {limit:g}; in {dtype} expected {least:.2g} to {most:.2g}")
    return np.full(1, limit, dtype)


def both_passes(net: MLP, X: Array, y: Array) -> tuple[list[Array], list[Array]]:
    """a and delta = dC^n/dz of every layer, for examples as the network's checks leave them."""
    b, passes = net.backend, net._passes(X)
    one = b.asarray(np.ones(1, net.dtype))
    delta, _ = b.output_delta(passes.saved[-1], b.asarray(y), net.loss, net.output_activation, scale=one)
    return passes.a[:-1], net.reverse(passes).deltas(delta)


def blocks(net: MLP, X: Any, y: Any) -> Iterator[tuple[list[Array], list[Array]]]:
    X = net.matrix(X)
    y = net.targets(y, len(X))
    for s in range(0, len(X), BLOCK):
        yield both_passes(net, net.backend.asarray(X[s : s + BLOCK]), y[s : s + BLOCK])


def norms(net: MLP, X: Any, y: Any) -> ExampleNorms:
    """See MLP.per_example_norms."""
    return _norms(net, blocks(net, X, y))


def _norms(net: MLP, parts: Iterator[tuple[list[Array], list[Array]]]) -> ExampleNorms:
    b, rows = net.backend, []
    for a, deltas in parts:
        of_layers = [b.to_numpy(b.example_norms(x, d)).astype(np.float64) for x, d in zip(a, deltas, strict=True)]
        rows.append(np.stack(of_layers, axis=1))
    squares = np.concatenate(rows)
    return ExampleNorms(np.sqrt(squares.sum(axis=1)), np.sqrt(squares))


def gradients(net: MLP, X: Any, y: Any) -> HostArray:
    """See MLP.per_example_gradients."""
    X = net.matrix(X)
    n, host = len(X), net.backend.to_numpy
    wanted, instead = n * net.theta.size * net.dtype.itemsize, "take per_example_norms or per_example_gram, or fewer examples"
    check_memory(wanted, f"the gradients of {n:,} examples, {net.theta.size:,} parameters each,", instead)
    a, deltas = both_passes(net, net.backend.asarray(X), net.targets(y, n))
    result = np.empty((n, net.theta.size), net.dtype)
    of_rows = [net.views(row) for row in result]
    for l in range(len(deltas)):
        for (dW, db), x, delta in zip(of_rows, host(a[l]), host(deltas[l]), strict=True):
            np.multiply.outer(x, delta, out=dW[l])
            db[l][:] = delta
    return result


def gram(net: MLP, X: Any, y: Any) -> HostArray:
    """See MLP.per_example_gram."""
    X = net.matrix(X)
    n, b = len(X), net.backend
    check_memory(3 * n * n * 8, f"the products of {n:,} examples with each other", "take fewer of them")
    a, deltas = both_passes(net, net.backend.asarray(X), net.targets(y, n))
    room = b.empty((n, n), net.dtype)
    total = np.zeros((n, n))
    for x, delta in zip(a, deltas, strict=True):
        products = [b.to_numpy(b.hidden_delta(rows, rows, room)).astype(np.float64) for rows in (x, delta)]  # rows rows^T
        total += (products[0] + 1) * products[1]
    return total


def noise_scale(net: MLP, X: Any, y: Any) -> NoiseScale:
    """See MLP.gradient_noise_scale."""
    X = net.matrix(X)
    n, b = len(X), net.backend
    if n < 2:
        raise ValueError("X has 1 row; expected two or more, for a variance")
    total = np.zeros(net.theta.shape)

    def summed() -> Iterator[tuple[list[Array], list[Array]]]:
        for a, deltas in blocks(net, X, y):
            gradient = b.empty(net.theta.shape, net.dtype)
            for x, delta, dW, db in zip(a, deltas, *net.views(gradient), strict=True):
                b.dense_gradient(x, delta, dW=dW, db=db)
            total[:] += b.to_numpy(gradient)
            yield a, deltas

    mean_square = float((_norms(net, summed()).total ** 2).mean())
    square_of_mean = float(((total / n) ** 2).sum())
    trace = max(0.0, (mean_square - square_of_mean) * n / (n - 1))
    squared_gradient = square_of_mean - trace / n
    return NoiseScale(trace / squared_gradient if squared_gradient > 0 else math.inf, trace, squared_gradient)
