"""The command line: bpgpu train, predict, export, trace, check and info."""

from __future__ import annotations

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from . import __version__
from .backend import BackendUnavailable
from .callbacks import Callback, Checkpoint, ProgressBar
from .data import Data, load_data, mnist10k
from .files import check_writable, load, write_whole
from .fitting import Diverged
from .kernels.names import ACTIVATIONS, LOSSES
from .mlp import MLP
from .optim import SGD
from .random import SPLIT, permutation
from .streams import Part, Rows
from .tables import some


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; gives the exit status: 0, 1 for a failed check, 2 for an error (one sentence on stderr), 130 after
    Ctrl-C."""
    options = _parser().parse_args(arguments)
    try:
        status = int(options.run(options))
        sys.stdout.flush()
        return status
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, TypeError, OSError, MemoryError, ImportError, BackendUnavailable, Diverged) as error:
        print(f"bpgpu: {error or type(error).__name__}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("bpgpu: interrupted", file=sys.stderr)
        return 130


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    """Adds a default where there is one to show."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="bpgpu", description="Multilayer perceptrons trained by backpropagation.")
    parser.add_argument("--version", action="version", version=f"bpgpu {__version__}")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser(
        "train",
        help="train a network and save it",
        description="Train a network; without options, one of 1.9 million parameters on a part of MNIST that comes along.",
        formatter_class=_Help,
    )
    train.set_defaults(run=_train)
    add = train.add_argument
    add("--data", help="folder or file: IDX (MNIST-style), .npz, .npy, .csv, .tsv, .parquet (default: a part of MNIST)")
    add("--target", help="name or number of the target column of a CSV or Parquet file")
    add("--hidden", type=_sizes, default="1024,1024", metavar="N,N,...", help="units of the hidden layers; 0 for none")
    add("--activation", default="relu", metavar="NAME[,NAME...]", help=f"one, or one a hidden layer: {', '.join(ACTIVATIONS)}")
    add("--loss", help=f"{', '.join(LOSSES)} (default: cross_entropy for labels, squared_error for numbers)")
    add("--output-activation", metavar="NAME", help="of the output layer (default: what goes with the loss)")
    add("--epochs", type=int, default=10, help="times through the training data")
    add("--batch-size", type=int, default=128, help="examples a step")
    add("--learning-rate", type=float, default=0.05, help="size of a step")
    add("--momentum", type=float, default=0.9, help="share of the last step that goes on")
    add("--weight-decay", type=float, default=0.0, help="L2 penalty")
    held_out = "of the training data, to choose the best epoch by; as much again to test, if there is no test part"
    add("--validation", type=float, default=0.1, metavar="SHARE", help=held_out)
    add("--seed", type=int, default=0, help="of initial weights, shuffles and splits")
    add("--backend", default="cpu", help="cpu, cuda, auto or numpy")
    add("--dtype", default="float32", help="float32 or float64")
    add("--precision", default="exact", help="of products: exact, or on a GPU the faster fp32-tc, tf32 or bf16")
    add("--checkpoint", metavar="FILE", help="where to keep the state of the training while it runs")
    add("--checkpoint-seconds", type=float, default=60.0, metavar="S", help="from one checkpoint to the next")
    add("--resume", action="store_true", help="go on from the checkpoint, if there is one, as if it had not been interrupted")
    add("--output", default="bpgpu-model.safetensors", metavar="FILE", help="where the model goes")

    predict = commands.add_parser(
        "predict",
        help="use a saved network",
        description="Print one line for each example, its label or numbers; if the data have a test part, for that part. "
        "Where the network predicts labels and the data have them, the accuracy goes to stderr; a model without names for its "
        "classes has the labels 0, 1, ...",
    )
    predict.set_defaults(run=_predict)
    predict.add_argument("model", metavar="MODEL")
    predict.add_argument("data", metavar="DATA", help="folder or file, as for train; labels may be missing")
    predict.add_argument("--target", help="name or number of the target column of a CSV or Parquet file")
    predict.add_argument("--proba", action="store_true", help="print the probabilities of all classes instead")
    predict.add_argument("--backend", default="cpu", help="cpu, cuda, auto or numpy")

    export = commands.add_parser("export", help="write a saved network for other software")
    export.set_defaults(run=_export)
    export.add_argument("model", metavar="MODEL")
    export.add_argument("output", metavar="OUT", help="the file to write")
    export.add_argument(
        "--format", required=True, choices=("onnx", "numpy", "torch"),
        help="onnx; numpy: a Python file that needs NumPy alone; torch: a state_dict of nn.Sequential, as safetensors",
    )  # fmt: skip

    trace = commands.add_parser(
        "trace",
        help="see both passes of one example",
        description="Print z, a, f'(z) and delta of one example in a saved network, with the largest dC/dw of its first layer "
        "unfolded; or write a page that steps through both passes. If the data have a test part, of that part.",
        formatter_class=_Help,
    )
    trace.set_defaults(run=_trace)
    trace.add_argument("model", metavar="MODEL", nargs="?", default="bpgpu-model.safetensors", help="as train has saved it")
    trace.add_argument("--data", help="folder or file, as for train (default: a part of MNIST)")
    trace.add_argument("--target", help="name or number of the target column of a CSV or Parquet file")
    trace.add_argument("--example", type=int, default=0, metavar="N", help="which one, counted from 0")
    trace.add_argument("--html", metavar="FILE", help="write a page instead: one file that needs no network")
    trace.add_argument("--backend", default="cpu", help="cpu, cuda, auto or numpy")

    check = commands.add_parser(
        "check",
        help="check that gradients are right, and bits the same, on this machine",
        description="A certificate of this machine: true gradients, the same bits for any number of threads, in every run and "
        "on CPU and GPU, as a table. The exit status is 0 if everything holds that can be checked here, 1 if not.",
    )
    check.set_defaults(run=_check)
    check.add_argument("--json", action="store_true", help="print JSON, for a bug report")

    info = commands.add_parser("info", help="what bpgpu finds on this machine")
    info.set_defaults(run=_info)
    return parser


def _sizes(text: str) -> tuple[int, ...]:
    try:
        sizes = tuple(int(part) for part in text.split(","))
    except ValueError:
        sizes = (-1,)
    if sizes == (0,):
        return ()
    if any(size < 1 for size in sizes):
        raise argparse.ArgumentTypeError(f"{text!r}; expected positive integers such as 1024,1024")
    return sizes


# -- train ---------------------------------------------------------------------------------------------------------------


def _train(options: argparse.Namespace) -> int:
    if not 0 < options.validation < 1:
        raise ValueError(f"--validation is {options.validation}; expected a share between 0 and 1, for example 0.1")
    if options.resume and not options.checkpoint:
        raise ValueError("--resume needs --checkpoint FILE, the file to resume from")
    check_writable(options.output, "--output")
    if options.checkpoint:
        check_writable(options.checkpoint, "--checkpoint")
    data = load_data(options.data, target=options.target) if options.data else mnist10k()
    if data.y is None:
        raise ValueError(f"{data.name} has no labels to train on")
    net = _network(options, data)
    (X, y), validation, test = _parts(net, data, options.validation, options.seed)
    optimizer = SGD(options.learning_rate, options.momentum, weight_decay=options.weight_decay)
    print(f"{data.name}: {len(X):,} examples to train on, {len(validation[0]):,} to validate, {len(test[0]):,} to test")
    print(net)
    callbacks: list[Callback] = [ProgressBar(lines=True)]
    resume = options.checkpoint if options.resume and os.path.exists(options.checkpoint) else None
    if options.checkpoint:
        callbacks.append(Checkpoint(options.checkpoint, seconds=options.checkpoint_seconds))
    if options.resume:
        print(f"resuming from {resume}" if resume else f"there is no {options.checkpoint} yet: training from the beginning")
    begun, status = time.perf_counter(), 0
    try:
        history = net.fit(
            X, y, epochs=options.epochs, batch_size=options.batch_size, optimizer=optimizer,
            validation_data=validation, restore_best=True, callbacks=callbacks, resume=resume,
        )  # fmt: skip
        print(f"trained for {time.perf_counter() - begun:.1f} s; best epoch {(history.best_epoch or 0) + 1}")
    except KeyboardInterrupt:
        status = 130
        if not net.epochs_trained:
            kept = "nothing was written"
            if options.checkpoint and os.path.exists(options.checkpoint):
                kept = f"--resume goes on from {options.checkpoint}"
            print(f"bpgpu: interrupted before the end of the first epoch; {kept}", file=sys.stderr)
            return status
        print("interrupted; keeping the best epoch so far")
    except OSError as error:  # a checkpoint that cannot be written, for example
        if not net.epochs_trained:
            raise
        status = 2
        print(f"bpgpu: {error}", file=sys.stderr)
    try:
        net.save(options.output)
        print(f"saved {options.output}")
    except OSError as error:
        status = 2
        print(f"bpgpu: {error}; the network is {_saved_elsewhere(net, Path(options.output).name)}", file=sys.stderr)
    loss, accuracy = net.evaluate(*test)
    print(f"test loss {loss:.4f}" + (f", test accuracy {accuracy:.2%}" if accuracy is not None else ""))
    return status


def _saved_elsewhere(net: MLP, name: str) -> str:
    """Where it is now, as the end of a sentence: a full disk must not cost a training."""
    try:
        path = Path(tempfile.mkdtemp(prefix="bpgpu-"), name)
        try:
            net.save(path)
        except OSError:
            path.parent.rmdir()
            raise
    except OSError:
        return "lost, as the folder for temporary files (TMPDIR) cannot be written to either"
    return f"in {path}"


def _network(options: argparse.Namespace, data: Data) -> MLP:
    assert data.y is not None
    loss = options.loss or ("cross_entropy" if data.classes else "squared_error")
    if data.classes:
        outputs = 1 if loss == "binary_cross_entropy" and len(data.classes) == 2 else len(data.classes)
    else:
        outputs = 1 if data.y.ndim == 1 else data.y.shape[1]
    names = options.activation.split(",")
    net = MLP(
        (data.X.shape[1], *options.hidden, outputs), activation=names[0] if len(names) == 1 else names, loss=loss,
        output_activation=options.output_activation, backend=options.backend, dtype=options.dtype,
        precision=options.precision, seed=options.seed,
    )  # fmt: skip
    net.classes = data.classes
    return net


def _parts(net: MLP, data: Data, share: float, seed: int) -> tuple[Any, Any, Any]:
    """(X, y) to train on, to validate and to test, all checked; what the data set lacks is held out of the training data."""
    X = net.rows(data.X)
    y = net.targets(data.y, len(X))
    order = permutation(seed, SPLIT, len(X))
    count = math.ceil(share * len(X))
    wanted = count if data.X_test is not None else 2 * count
    if wanted >= len(X):
        raise ValueError(
            f"{data.name} has {len(X)} examples, too few to hold out {wanted}; give more data or a smaller --validation"
        )
    validation, rest = order[:count], order[count:]

    def part(rows: Any) -> tuple[Any, Any]:
        return (Part(X, rows) if isinstance(X, Rows) else X[rows]), y[rows]

    if data.X_test is not None and data.y_test is not None:
        X_test = net.rows(data.X_test, "X_test")
        test = X_test, net.targets(data.y_test, len(X_test), "y_test")
    else:
        test, rest = part(rest[:count]), rest[count:]
    return part(rest), part(validation), test


# -- predict -------------------------------------------------------------------------------------------------------------


def _predict(options: argparse.Namespace) -> int:
    net = load(options.model, backend=options.backend)
    data = load_data(options.data, target=options.target, labels=False)
    X, y = (data.X, data.y) if data.X_test is None else (data.X_test, data.y_test)
    labelled = net.loss == "cross_entropy" or (net.loss == "binary_cross_entropy" and net.layers[-1] == 1)
    rows = net.predict_proba(X) if labelled or options.proba else net.predict(X)
    if labelled and rows.shape[1] == 1:
        rows = np.hstack([1 - rows, rows])
    names = net.classes or tuple(map(str, range(max(2, net.layers[-1]))))
    labels = [names[k] for k in rows.argmax(axis=1)] if labelled else None
    if labels is None or options.proba:
        print("\n".join(" ".join(f"{v:g}" for v in np.atleast_1d(row)) for row in rows))
    else:
        print("\n".join(labels))
    numbered = data.classes == tuple(map(str, range(len(data.classes or ()))))  # y has the labels themselves, not their places
    if labels is not None and y is not None and data.classes and (net.classes or numbered):
        right = sum(label == data.classes[k] for label, k in zip(labels, y, strict=True))
        strange = sorted({data.classes[k] for k in y} - set(names))
        note = f"; it does not know the labels {some(strange)}, its own are {some(list(names))}" if strange else ""
        print(f"accuracy {right / len(labels):.2%} ({right} of {len(labels)}){note}", file=sys.stderr)
    return 0


# -- export --------------------------------------------------------------------------------------------------------------


def _export(options: argparse.Namespace) -> int:
    from safetensors.numpy import save as to_safetensors

    from . import export

    check_writable(options.output, "OUT")
    net = load(options.model, backend="numpy")
    if options.format == "onnx":
        content = export.to_onnx(net)
    elif options.format == "numpy":
        content = export.to_numpy_function(net).encode()
    else:
        content = to_safetensors(export.to_torch_state_dict(net))
    write_whole(options.output, content)
    print(f"saved {options.output}")
    return 0


# -- trace ---------------------------------------------------------------------------------------------------------------


def _trace(options: argparse.Namespace) -> int:
    if options.html:
        check_writable(options.html, "--html")
    if not Path(options.model).exists():
        raise FileNotFoundError(f"there is no model {options.model}; train one first: bpgpu train")
    net = load(options.model, backend=options.backend)
    data = load_data(options.data, target=options.target) if options.data else mnist10k()
    X, y = (data.X, data.y) if data.X_test is None else (data.X_test, data.y_test)
    if y is None:
        raise ValueError(f"{data.name} has no labels to trace the loss of")
    if not 0 <= options.example < len(X):
        raise ValueError(f"--example is {options.example}; expected 0 to {len(X) - 1}")
    label = y[options.example]
    if data.classes and net.classes:  # the same numbers may stand for other names there
        if (name := data.classes[label]) not in net.classes:
            known = some(list(net.classes))
            raise ValueError(
                f"the label of example {options.example} is {name!r}, which the model does not know; expected one of {known}"
            )
        label = net.classes.index(name)
    trace = net.trace(X[options.example], label)
    if options.html:
        trace.to_html(options.html)
        print(f"saved {options.html}")
        return 0
    i, o = np.unravel_index(int(np.abs(trace.dW[0]).argmax()), trace.dW[0].shape)
    print(f"{trace}\n\n{trace.explain(0, int(i), int(o))}")
    return 0


# -- check ---------------------------------------------------------------------------------------------------------------


def _check(options: argparse.Namespace) -> int:
    from .certificate import as_dict, certify, report

    checks = certify()
    print(json.dumps(as_dict(checks), indent=2) if options.json else report(checks))
    return int(any(check.passed is False for check in checks))


# -- info ----------------------------------------------------------------------------------------------------------------


def _info(options: argparse.Namespace) -> int:
    from importlib.metadata import PackageNotFoundError, version

    from .certificate import blas
    from .devices import backends
    from .kernels.disk import cache_folder
    from .kernels.machine import lanes, target
    from .team import thread_count

    def package(name: str) -> str:
        try:
            return version(name)
        except PackageNotFoundError:
            return "not installed"

    print(f"bpgpu {__version__}, Python {sys.version.split()[0]}, {sys.platform}")
    for name, state in backends().items():
        print(f"backend {name}: {state}")
        if name == "cuda" and state == "available":
            from .gpu import description

            print(f"GPU: {description()}")
    chosen = "NUMBA_NUM_THREADS" if os.environ.get("NUMBA_NUM_THREADS") else "the CPUs that this process may use"
    print(f"threads: {thread_count()} ({chosen}); asleep when idle")
    print(f"CPU: {target()[0]}, vectors of {lanes('float32').lanes} float32")
    print(
        f"kernels: {f'kept in {cache_folder()}' if cache_folder() else 'compiled by every process: no folder can be written'}"
    )
    print(f"BLAS of NumPy (used by the numpy backend alone): {blas()}")
    packages = ("numpy", "numba", "llvmlite", "safetensors", "rich", "cupy-cuda12x", "cupy-cuda13x", "nvmath-python")
    print("packages: " + ", ".join(f"{name} {package(name)}" for name in packages))
    return 0
