"""L-BFGS on the flat theta, through SciPy: for small data sets, on all examples at once."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from .checks import amount, count
from .per_example import BLOCK
from .streams import Rows

if TYPE_CHECKING:
    from .fitting import History
    from .mlp import MLP


def fit_lbfgs(
    net: MLP,
    X: Any,
    y: Any,
    *,
    max_iter: int = 200,
    tol: float = 1e-5,
    weight_decay: float = 0.0,
    average_penalties: bool = False,
    max_fun: int | None = None,
    sample_weight: Any = None,
    callback: Callable[[History], Any] | None = None,
) -> History:
    """Minimize L + weight_decay / 2 |w|^2 over all examples (Liu and Nocedal, 1989), w the weights without the biases.

    max_iter           iterations at most
    tol                ends when no number of the gradient is larger
    max_fun            evaluations of the loss at most, by default 20 max_iter
    average_penalties  the penalty is divided by the number of examples (their sum of weights), as scikit-learn's alpha is
    callback           a function of the history, called after each iteration

    X may also be a memory map or a matrix of scipy.sparse, which are read and made dense some rows at a time.
    The history has the value of what is minimized after each iteration.  theta and its gradient go to SciPy and come back in
    float64, once an evaluation.  Ctrl-C or an error leaves the weights of the last whole iteration.

    Raises Diverged where the loss or its gradient is not finite.  ImportError: SciPy is not installed.  ValueError, TypeError:
    as in fit.
    """
    try:
        from scipy.optimize import minimize
    except ImportError as error:
        raise ImportError("L-BFGS needs SciPy: python -m pip install 'bpgpu[scipy]'") from error
    from .fitting import Diverged, History, bad_layer

    max_iter = count("max_iter", max_iter)
    amount("tol", tol)
    X = net.rows(X)
    y = net.targets(y, len(X))
    examples = float(len(X))
    if sample_weight is not None:
        sample_weight = net.sample_weights(sample_weight, len(X))
        examples = math.fsum(sample_weight)
    decay = amount("weight_decay", weight_decay) / (examples if average_penalties else 1)
    weights = sum(i * o for i, o in net.shapes)  # theta begins with them
    history, begun = History(), time.perf_counter()
    reached = net.backend.to_numpy(net.theta).astype(np.float64)  # after the last whole iteration

    def value_and_gradient(theta: np.ndarray[Any, Any]) -> tuple[float, np.ndarray[Any, Any]]:
        net.theta = theta.astype(net.dtype)
        loss, g = 0.0, np.zeros(theta.shape)
        for start, block in X.blocks() if isinstance(X, Rows) else [(0, X)]:
            rows = slice(start, start + len(block))
            part = None if sample_weight is None else sample_weight[rows]
            share = (len(block) if part is None else math.fsum(part)) / examples if net.reduction == "mean" else 1.0
            if part is None or part.any():
                of_block, gradient = net.gradient(block, y[rows], sample_weight=part)
                loss += share * of_block
                g += share * net.backend.to_numpy(gradient).astype(np.float64)
        g[:weights] += decay * theta[:weights]
        return loss + decay / 2 * float(theta[:weights] @ theta[:weights]), g

    def check(result: Any) -> None:
        if np.isfinite(result.fun) and np.isfinite(result.get("jac", 0.0)).all():
            return
        net.theta = result.x.astype(net.dtype)
        where = bad_layer(net, (X[s : s + BLOCK] for s in range(0, len(X), BLOCK)))
        raise Diverged(
            f"the loss or its gradient is no finite number after {len(history.loss)} iterations, {where}; "
            'the weights are those of the last whole one: scale X and y, or use dtype="float64"'
        )

    def iterated(intermediate_result: Any) -> None:
        nonlocal begun, reached
        check(intermediate_result)
        reached = np.array(intermediate_result.x)
        history.loss.append(float(intermediate_result.fun))
        history.seconds.append(time.perf_counter() - begun)
        history.best_epoch = len(history.loss) - 1
        net.epochs_trained += 1
        if callback is not None:
            callback(history)
        begun = time.perf_counter()

    try:
        result = minimize(
            value_and_gradient, reached, jac=True, method="L-BFGS-B", callback=iterated,
            options={"maxiter": max_iter, "maxfun": max_fun or 20 * max_iter, "gtol": tol},
        )  # fmt: skip
        check(result)
        reached = result.x
    finally:
        net.theta = reached.astype(net.dtype)
    return history
