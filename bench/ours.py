"""bpgpu as a competitor: a step, many recorded steps under any rule, what it predicts, a whole fit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

import bpgpu

from .measuring import Data, Run
from .networks import CLIP, FIT_MOMENTUM, FIT_RATE, LEARNING_RATE, Network

RULES: dict[str, Callable[[], bpgpu.Optimizer]] = {
    "sgd": lambda: bpgpu.SGD(LEARNING_RATE),
    "momentum": lambda: bpgpu.SGD(LEARNING_RATE, momentum=0.9),
    # Adam's steps are as long as its rate: at the usual one, random labels were learnt by heart while they are timed,
    # and subnormal gradients are not what is to be timed
    "adam": lambda: bpgpu.Adam(LEARNING_RATE / 1000),
}


def net_of(network: Network, seed: int = 0) -> bpgpu.MLP:
    net = bpgpu.MLP(network.layers, activation=network.activation, dtype=network.dtype, seed=seed)
    for mine, W in zip(net.weights, network.weights(), strict=True):
        mine[:] = W
    return net


def step(network: Network, threads: int, clip: float | None = None) -> Run:
    """net.train_step: the arguments are checked and copied in each call."""
    net = net_of(network)
    optimizer, (X, y) = RULES["sgd"](), network.data()
    return Run(lambda: net.train_step(X, y, optimizer, clip_per_example=clip), lambda: net.weights)


def many(network: Network, threads: int, rule: str = "sgd", clip: float | None = None) -> Run:
    """The recorded step as net.fit replays it: many steps a call, each with the next batch gathered from a data set."""
    from bpgpu.epochs import SLICE_SECONDS

    epochs = epochs_of(network, rule, clip)
    program = epochs.programs[0][0]
    steps = min(epochs.full, max(1, int(SLICE_SECONDS * 100e9 / network.flops)))
    return Run(lambda: program.run(0, steps), lambda: epochs.net.weights, steps, lambda: program.run(0, 1))


def epochs_of(network: Network, rule: str, clip: float | None = None) -> Any:
    """What fit replays, at the beginning of an epoch."""
    from bpgpu.epochs import Epochs

    X, y = network.data(max(1, min(256, 2**26 // (4 * network.batch * network.layers[0]))))  # at most 64 MiB
    optimizer = RULES[rule]()
    trainer = net_of(network).trainer(optimizer)
    trainer.clip = clip
    epochs = Epochs(trainer, X, y, None, network.batch)
    epochs.begin(optimizer, np.arange(len(X)))
    return epochs


def momentum(network: Network, threads: int) -> Run:
    return many(network, threads, "momentum")


def adam(network: Network, threads: int) -> Run:
    return many(network, threads, "adam")


def clipped(network: Network, threads: int) -> Run:
    return step(network, threads, CLIP)


def many_clipped(network: Network, threads: int) -> Run:
    return many(network, threads, clip=CLIP)


def norms(network: Network, threads: int) -> Run:
    """net.per_example_norms of a batch."""
    net, (X, y) = net_of(network), network.data()
    return Run(lambda: net.per_example_norms(X, y))


def health(network: Network, threads: int) -> Run:
    """What fit looks at now and then; a call counts as all the steps between two looks."""
    from bpgpu.health import Observer

    epochs = epochs_of(network, "sgd")
    observer, before = Observer(epochs.net, epochs), epochs.net.theta.copy()
    between = max(1.0, observer.epochs_between(epochs.net, epochs.n))
    return Run(lambda: observer.measure(before, 0), steps=round(between * epochs.steps))


def labels(network: Network, threads: int) -> Run:
    """net.predict: labels."""
    net, (X, _) = net_of(network), network.data()
    return Run(lambda: net.predict(X), labels=lambda: net.predict(X))


def outputs(network: Network, threads: int) -> Run:
    """net.outputs: probabilities."""
    net, (X, _) = net_of(network), network.data()
    return Run(lambda: net.outputs(X), labels=lambda: net.outputs(X).argmax(axis=1))


def fit(network: Network, data: Data, seed: int, told: Callable[[float], bool]) -> None:
    """net.fit with the test images as validation_data."""
    X, y, X_test, y_test = data

    def after_epoch(progress: Any) -> bool:
        return progress.epoch_ended and told(progress.history.validation_accuracy[-1])

    net_of(network, seed).fit(
        X, y, epochs=1000, batch_size=network.batch, optimizer=bpgpu.SGD(FIT_RATE, momentum=FIT_MOMENTUM),
        validation_data=(X_test, y_test), callbacks=after_epoch,
    )  # fmt: skip
