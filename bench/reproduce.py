"""Published results of multilayer perceptrons, trained again: python -m bench.reproduce [--mnist FOLDER] [names ...]

Every run is from fixed seeds, so that it gives the same figures on any machine.  Where the source reports the best epoch on the
images that it is judged by, so does the line here; the others are those of the last epoch.
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import bpgpu

SEEDS = (0, 100, 200)
Figures = tuple[str, str]  # found here, and what it was found by


def mnist(folder: str | None) -> bpgpu.Data:
    if folder is None:
        raise FileNotFoundError("needs all of MNIST: --mnist FOLDER, with train-images-idx3-ubyte.gz and the like")
    return bpgpu.load_data(folder)


def simard(folder: str | None, epochs: int = 40, **options: Any) -> Figures:
    """Cross-entropy, 60,000 images, no validation: the accuracy on the test images after the last epoch."""
    data = mnist(folder)
    net = bpgpu.MLP([784, 800, 10], activation="relu", seed=0)
    rate = bpgpu.schedules.cosine(0.1, epochs * -(-len(data.X) // 100))
    net.fit(data.X, data.y, epochs=epochs, batch_size=100, optimizer=bpgpu.SGD(rate, 0.9, weight_decay=1e-5), **options)
    return f"{accuracy(net, data.X_test, data.y_test):.2%}", f"test images, after {epochs} epochs"


def elastic(folder: str | None) -> Figures:
    return simard(folder, 60, transform=bpgpu.Distort(alpha=34, sigma=4, rotation=10, scale=0.1))


def nielsen(
    folder: str | None, hidden: int, rate: float, loss: str, penalty: float, parts: Callable[[bpgpu.Data], tuple[Any, ...]]
) -> Figures:
    """The book's network.py and network2.py: sigmoid, weights and biases from a standard normal distribution, batches of 10."""
    X, y, X_new, y_new, what = parts(mnist(folder))
    best = []
    for seed in SEEDS:
        net = bpgpu.MLP(
            [784, hidden, 10], activation="sigmoid", loss=loss, output_activation="sigmoid", seed=seed,
            initializer=lambda shape, rng: rng.standard_normal(shape),
        )  # fmt: skip
        rng = np.random.default_rng(seed)
        for l, bias in enumerate(net.biases):
            net.biases[l] = rng.standard_normal(bias.shape)
        right: list[float] = []

        def see(progress: bpgpu.Progress, net: bpgpu.MLP = net, right: list[float] = right) -> None:
            if progress.epoch_ended:
                right.append(float(np.mean(net.outputs(X_new).argmax(axis=1) == y_new)))

        net.fit(X, y, epochs=30, batch_size=10, optimizer=bpgpu.SGD(rate, weight_decay=penalty / len(X)), callbacks=see)
        best.append(max(right))
    said = f"{np.mean(best):.2%} ({min(best):.2%} to {max(best):.2%})"
    return said, f"{what}, best of 30 epochs, as in the book; mean of three seeds"


def tested(data: bpgpu.Data) -> tuple[Any, ...]:
    assert data.y is not None
    return data.X[:50_000], data.y[:50_000], data.X_test, data.y_test, "test images"


def validated(data: bpgpu.Data) -> tuple[Any, ...]:
    assert data.y is not None
    return data.X[:50_000], data.y[:50_000], data.X[50_000:], data.y[50_000:], "validation images"


def accuracy(net: bpgpu.MLP, X: Any, y: Any) -> float:
    found = net.evaluate(X, y)[1]
    assert found is not None
    return found


def folds(load: Callable[..., Any], make: Callable[[int, int], bpgpu.MLP], epochs: int, optimizer: Callable[[], Any]) -> Any:
    """The held-out predictions of five-fold cross-validation, and the targets; inputs standardized by the other folds."""
    from sklearn.model_selection import KFold

    X, y = load(return_X_y=True)
    predicted = np.empty(len(y))
    for k, (train, test) in enumerate(KFold(5, shuffle=True, random_state=0).split(X)):
        mean, deviation = X[train].mean(axis=0), X[train].std(axis=0) + 1e-9
        net = make(X.shape[1], k)
        net.fit((X[train] - mean) / deviation, y[train], epochs=epochs, batch_size=32, optimizer=optimizer())
        predicted[test] = net.predict((X[test] - mean) / deviation)
    return predicted, y


def digits(folder: str | None) -> Figures:
    """With scikit-learn's initial weights, so that the two differ in their random numbers alone."""
    from sklearn.datasets import load_digits

    right = []
    for seed in SEEDS:
        predicted, y = folds(
            load_digits, lambda i, k, seed=seed: bpgpu.MLP([i, 100, 10], seed=seed + k, initializer="glorot_uniform"), 40,
            lambda: bpgpu.Adam(1e-3),
        )  # fmt: skip
        right.append(np.mean(predicted == y))
    return f"{np.mean(right):.2%}", "five-fold cross-validation, 40 epochs, mean of three seeds"


def diabetes(folder: str | None) -> Figures:
    from sklearn.datasets import load_diabetes

    def scaled(return_X_y: bool) -> Any:
        X, y = load_diabetes(return_X_y=return_X_y)
        return X, (y - 152.1) / 77.1  # about its mean and deviation

    predicted, y = folds(
        scaled, lambda i, k: bpgpu.MLP([i, 20, 1], activation="tanh", loss="squared_error", seed=k), 60,
        lambda: bpgpu.Adam(1e-3, weight_decay=0.1),
    )  # fmt: skip
    return f"R^2 {1 - np.sum((predicted - y) ** 2) / np.sum((y - y.mean()) ** 2):.3f}", "five-fold cross-validation, 60 epochs"


def sklearn_digits() -> str:
    from sklearn.datasets import load_digits
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.model_selection import KFold, cross_val_score
    from sklearn.neural_network import MLPClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    warnings.simplefilter("ignore", ConvergenceWarning)  # as many epochs as here
    scores = []
    for seed in SEEDS:
        model = make_pipeline(StandardScaler(), MLPClassifier((100,), batch_size=32, max_iter=40, random_state=seed))
        scores.append(cross_val_score(model, *load_digits(return_X_y=True), cv=KFold(5, shuffle=True, random_state=0)).mean())
    return f"{np.mean(scores):.2%} (scikit-learn's MLPClassifier)"


def sklearn_diabetes() -> str:
    from sklearn.datasets import load_diabetes
    from sklearn.linear_model import LinearRegression
    from sklearn.model_selection import KFold, cross_val_predict

    X, y = load_diabetes(return_X_y=True)
    predicted = cross_val_predict(LinearRegression(), X, y, cv=KFold(5, shuffle=True, random_state=0))
    return f"R^2 {1 - np.sum((predicted - y) ** 2) / np.sum((y - y.mean()) ** 2):.3f} (linear regression)"


RESULTS: dict[str, tuple[str, str | Callable[[], str], Callable[[str | None], Figures]]] = {
    "simard": ("MNIST 784-800-10, cross-entropy", "98.4 % (Simard et al., ICDAR 2003)", simard),
    "nielsen-30": (
        "MNIST 784-30-10, sigmoid, quadratic cost", "95.42 % (Nielsen, Neural Networks and Deep Learning, ch. 1)",
        lambda folder: nielsen(folder, 30, 3.0, "squared_error", 0.0, tested),
    ),
    "nielsen-100": (
        "MNIST 784-100-10, sigmoid, cross-entropy, L2", "97.92 % (Nielsen, ch. 3)",
        lambda folder: nielsen(folder, 100, 0.5, "binary_cross_entropy", 5.0, validated),
    ),
    "digits": ("digits 64-100-10", sklearn_digits, digits),
    "diabetes": ("diabetes 10-20-1, regression", sklearn_diabetes, diabetes),
    "elastic": ("MNIST 784-800-10, cross-entropy, elastic distortions", "99.3 % (Simard et al.)", elastic),
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.reproduce", description="Published results, trained again.")
    parser.add_argument("--mnist", metavar="FOLDER", help="with the IDX files of MNIST")
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help=f"of {', '.join(RESULTS)} (default: all but elastic, which takes long)"
    )
    options = parser.parse_args()
    unknown = set(options.names) - set(RESULTS)
    if unknown:
        parser.error(f"unknown: {', '.join(sorted(unknown))}; known: {', '.join(RESULTS)}")
    if options.mnist and not Path(options.mnist).is_dir():
        parser.error(f"--mnist {options.mnist} is no folder")
    print("| network | published or by others | bpgpu | how | seconds | command |\n|---|---|---|---|---|---|")
    for name in options.names or [name for name in RESULTS if name != "elastic"]:
        what, reference, run = RESULTS[name]
        command = f"`python -m bench.reproduce {'--mnist FOLDER ' * what.startswith('MNIST')}{name}`"
        begun = time.perf_counter()
        try:
            found, how = run(options.mnist)
        except (FileNotFoundError, ImportError) as error:
            print(f"| {what} | | | left out: {error} | | {command} |")
            continue
        seconds = time.perf_counter() - begun
        theirs = reference if isinstance(reference, str) else reference()
        print(f"| {what} | {theirs} | {found} | {how} | {seconds:.0f} | {command} |", flush=True)


if __name__ == "__main__":
    main()
