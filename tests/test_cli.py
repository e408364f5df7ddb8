"""The command line, as a user meets it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import bpgpu
from bpgpu import files
from bpgpu.cli import main


def run(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bpgpu", *arguments], cwd=cwd, capture_output=True, text=True, timeout=120, check=False
    )


@pytest.fixture
def blobs(tmp_path: Path) -> Path:
    """Three clouds of points as a CSV file with names for labels."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 300)
    X = rng.standard_normal((300, 2)) * 0.3 + np.array([[0, 0], [3, 0], [0, 3]])[y]
    lines = ["x1,x2,kind"] + [f"{a:.4f},{b:.4f},{('ant', 'bee', 'cat')[k]}" for (a, b), k in zip(X, y, strict=True)]
    path = tmp_path / "blobs.csv"
    path.write_text("\n".join(lines))
    return path


SMALL = "--hidden", "16", "--epochs", "20", "--batch-size", "16"


def test_train_and_predict_a_csv_file(blobs: Path, tmp_path: Path) -> None:
    trained = run("train", "--data", str(blobs), *SMALL, "--output", "model.safetensors", cwd=tmp_path)
    assert trained.returncode == 0, trained.stderr
    assert "240 examples to train on, 30 to validate, 30 to test" in trained.stdout
    assert trained.stdout.count("validation accuracy") == 20
    assert "test accuracy 100.00%" in trained.stdout and "saved model.safetensors" in trained.stdout
    predicted = run("predict", "model.safetensors", str(blobs), "--target", "kind", cwd=tmp_path)
    assert predicted.returncode == 0, predicted.stderr
    truth = [line.split(",")[2] for line in blobs.read_text().splitlines()[1:]]
    right = sum(a == b for a, b in zip(predicted.stdout.split(), truth, strict=True))
    assert right >= 298 and f"({right} of 300)" in predicted.stderr
    proba = run("predict", "model.safetensors", str(blobs), "--target", "kind", "--proba", cwd=tmp_path)
    rows = np.array([line.split() for line in proba.stdout.splitlines()], float)
    assert rows.shape == (300, 3)
    np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-5)


def test_the_same_seed_trains_the_same_model(blobs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = [tmp_path / f"{name}.safetensors" for name in "abc"]
    for file, seed in zip(files, "112", strict=True):
        assert main(["train", "--data", str(blobs), *SMALL, "--seed", seed, "--output", str(file)]) == 0
    a, b, c = (file.read_bytes() for file in files)
    assert a == b != c


def test_regression(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    X = np.random.default_rng(0).standard_normal((500, 3))
    np.savez(tmp_path / "d.npz", X=X, y=X @ [1.0, -2.0, 0.5])
    model = tmp_path / "m.safetensors"
    arguments = ["--hidden", "0", "--epochs", "30", "--batch-size", "32", "--dtype", "float64", "--output", str(model)]
    assert main(["train", "--data", str(tmp_path / "d.npz"), *arguments]) == 0
    out = capsys.readouterr().out
    assert "squared_error" in out and "validation loss" in out and "test loss 0.0000" in out and "accuracy" not in out
    np.testing.assert_allclose(bpgpu.load(model).weights[0][:, 0], [1, -2, 0.5], atol=1e-6)
    assert main(["predict", str(model), str(tmp_path / "d.npz")]) == 0
    np.testing.assert_allclose(np.array(capsys.readouterr().out.split(), float), X @ [1, -2, 0.5], atol=1e-4)


def test_every_option_reaches_the_network(blobs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "m.safetensors"
    options = (
        "--hidden 7,5 --activation tanh,gelu --loss squared_error --output-activation sigmoid --epochs 2 --batch-size 50 "
        "--learning-rate 0.01 --momentum 0.5 --weight-decay 0.001 --validation 0.2 --seed 9 --backend numpy --dtype float64"
    ).split()
    assert main(["train", "--data", str(blobs), "--target", "2", *options, "--output", str(model)]) == 0
    assert "180 examples to train on, 60 to validate, 60 to test" in capsys.readouterr().out
    net = bpgpu.load(model)
    assert (net.layers, net.activations, net.loss) == ((2, 7, 5, 3), ("tanh", "gelu"), "squared_error")
    assert (net.output_activation, net.dtype, net.seed, net.epochs_trained) == ("sigmoid", np.float64, 9, 2)
    assert net.classes == ("ant", "bee", "cat")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "--data", "nowhere"], "nowhere"),
        (["train", "--activation", "rleu"], "did you mean 'relu'"),
        (["train", "--loss", "crossentropy"], "did you mean 'cross_entropy'"),
        (["train", "--loss", "squared_error", "--output-activation", "softmax"], "goes with the loss cross_entropy"),
        (["train", "--activation", "relu,relu,relu"], "3 activations for 2 hidden layers"),
        (["train", "--epochs", "0"], "epochs is 0; expected a positive integer"),
        (["train", "--batch-size", "-5"], "batch_size is -5"),
        (["train", "--learning-rate", "nan"], "learning_rate is nan"),
        (["train", "--momentum", "1"], "expected less than 1"),
        (["train", "--validation", "1"], "expected a share between 0 and 1"),
        (["train", "--validation", "0.9999999"], "too few to hold out"),
        (["train", "--dtype", "float16"], "unknown dtype 'float16'"),
        (["train", "--backend", "gpu"], "unknown backend 'gpu'"),
        (["train", "--backend", "cuda"], "CuPy|NVIDIA"),
        (["train", "--seed", "-1"], "seed is -1"),
        (["train", "--output", "."], "is a directory"),
        (["train", "--output", "no/such/folder/m.safetensors"], "create it first"),
        (["predict", "no-model", "."], "no-model"),
    ],
)
def test_errors_are_one_sentence(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 2
    error = capfd.readouterr().err
    assert error.startswith("bpgpu: ") and error.count("\n") == 1
    assert any(part in error for part in message.split("|"))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("where", "message"),
    [("X", r" X\[7, 1\] is"), ("y", r" y\[7\] is"), ("X_test", r" X_test\[7, 1\] is"), ("y_test", r" y_test\[7\] is")],
)
def test_bad_numbers_are_named_where_the_file_has_them_before_any_training(
    where: str, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arrays = {"X": np.ones((100, 2)), "y": np.ones(100), "X_test": np.ones((20, 2)), "y_test": np.ones(20)}
    arrays[where][(7, 1)[: arrays[where].ndim]] = np.nan
    np.savez(tmp_path / "d.npz", **arrays)
    assert main(["train", "--data", str(tmp_path / "d.npz"), *SMALL, "--output", str(tmp_path / "m.safetensors")]) == 2
    out, error = capsys.readouterr()
    assert re.search(message, error) and error.count("\n") == 1 and "epoch" not in out
    assert [file.name for file in tmp_path.iterdir()] == ["d.npz"]


def test_the_model_is_kept_if_the_test_is_interrupted(
    blobs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, plain = tmp_path / "m.safetensors", bpgpu.MLP.evaluate

    def evaluate(*arguments: Any, **options: Any) -> Any:
        if model.exists():
            raise KeyboardInterrupt
        return plain(*arguments, **options)

    monkeypatch.setattr(bpgpu.MLP, "evaluate", evaluate)
    assert main(["train", "--data", str(blobs), *SMALL, "--output", str(model)]) == 130
    assert bpgpu.load(model).epochs_trained == 20
    assert capsys.readouterr().err == "bpgpu: interrupted\n"


@pytest.mark.skipif(not Path("/proc/self").exists(), reason="there is no /proc here")
def test_a_place_where_no_file_can_be_made_is_refused_before_any_training(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--output", "/proc/model.safetensors"]) == 2  # also as root, whom no permissions hold back
    out, error = capsys.readouterr()
    assert error.startswith("bpgpu: --output /proc/model.safetensors: the directory /proc cannot be written to (")
    assert out == "" and error.count("\n") == 1


def test_labels_that_the_model_does_not_know_are_said(blobs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model, other = tmp_path / "m.safetensors", tmp_path / "other.csv"
    assert main(["train", "--data", str(blobs), *SMALL, "--output", str(model)]) == 0
    other.write_text(blobs.read_text().replace("bee", "wasp"))
    capsys.readouterr()
    assert main(["predict", str(model), "--target", "kind", str(blobs)]) == 0
    assert "does not know" not in capsys.readouterr().err
    assert main(["predict", str(model), "--target", "kind", str(other)]) == 0
    assert capsys.readouterr().err.endswith("); it does not know the labels wasp, its own are ant, bee, cat\n")


def test_a_trace_takes_labels_by_name(blobs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file that lacks some classes numbers its labels otherwise than the model does."""
    model, one = tmp_path / "m.safetensors", tmp_path / "one.csv"
    assert main(["train", "--data", str(blobs), *SMALL, "--output", str(model)]) == 0
    net, arguments = bpgpu.load(model), ["trace", str(model), "--data", str(one), "--target", "kind"]
    for label, name in enumerate(("ant", "bee", "cat")):
        one.write_text(f"x1,x2,kind\n0,3,{name}\n")
        capsys.readouterr()
        assert main(arguments) == 0
        assert capsys.readouterr().out.startswith(str(net.trace(np.array([0.0, 3.0]), label)) + "\n")
    one.write_text("x1,x2,kind\n0,3,wasp\n")
    assert main(arguments) == 2
    out, error = capsys.readouterr()
    assert error == "bpgpu: the label of example 0 is 'wasp', which the model does not know; expected one of ant, bee, cat\n"
    assert out == ""


def two_classes(net: bpgpu.MLP) -> bpgpu.MLP:
    """One input, whose sign decides: class 1 (the last one) if it is positive."""
    net.weights[0] = np.linspace(-1, 1, net.layers[-1])[None] if net.layers[-1] > 1 else np.ones((1, 1))
    return net


PAIRS = [([1, 2], "cross_entropy"), ([1, 1], "binary_cross_entropy")]


@pytest.mark.parametrize(("layers", "loss"), PAIRS)
def test_probabilities_of_all_classes_and_the_accuracy(
    layers: list[int], loss: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = two_classes(bpgpu.MLP(layers, loss=loss))
    net.classes = ("ant", "bee")
    net.save(tmp_path / "m.safetensors")
    (tmp_path / "d.csv").write_text("x,label\n-2,ant\n3,bee\n-1,bee\n")
    arguments = ["predict", str(tmp_path / "m.safetensors"), str(tmp_path / "d.csv")]
    assert main(arguments) == 0
    out, plain = capsys.readouterr()
    assert out.split() == ["ant", "bee", "ant"] and plain == "accuracy 66.67% (2 of 3)\n"
    assert main([*arguments, "--proba"]) == 0
    out, error = capsys.readouterr()
    p = net.predict_proba(np.array([[-2.0], [3], [-1]]))
    expected = np.hstack([1 - p, p]) if layers[-1] == 1 else p
    np.testing.assert_allclose(np.array([line.split() for line in out.splitlines()], float), expected, rtol=1e-5)
    assert error == plain


@pytest.mark.parametrize(("layers", "loss"), PAIRS)
def test_a_model_without_names_has_numbers(
    layers: list[int], loss: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    two_classes(bpgpu.MLP(layers, loss=loss)).save(tmp_path / "m.safetensors")
    X = np.array([[-2.0], [3], [-1]])
    for y, said in (
        ([0, 1, 1], "accuracy 66.67% (2 of 3)\n"),
        ([1, 1, 1], "accuracy 33.33% (1 of 3)\n"),
        ([0, 1, 2], "accuracy 66.67% (2 of 3); it does not know the labels 2, its own are 0, 1\n"),
        ([-1, 1, 1], ""),  # which number the model has for -1 nobody has said
        (["ant", "bee", "bee"], ""),
    ):
        np.savez(tmp_path / "d.npz", X=X, y=y)
        assert main(["predict", str(tmp_path / "m.safetensors"), str(tmp_path / "d.npz")]) == 0
        out, error = capsys.readouterr()
        assert out.split() == ["0", "1", "0"] and error == said


@pytest.mark.parametrize("options", [{"loss": "squared_error"}, {"loss": "binary_cross_entropy"}])
def test_no_accuracy_where_the_network_gives_no_label(
    options: dict[str, str], blobs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    net = bpgpu.MLP([2, 3], **options)  # type: ignore[arg-type]
    net.classes = ("ant", "bee", "cat")
    net.save(tmp_path / "m.safetensors")
    assert main(["predict", str(tmp_path / "m.safetensors"), str(blobs), "--target", "kind"]) == 0
    out, error = capsys.readouterr()
    assert np.array([line.split() for line in out.splitlines()], float).shape == (300, 3) and error == ""


@pytest.mark.parametrize("sizes", ["a", "10,", "0,5", "-3", ""])
def test_sizes_that_are_none(sizes: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", f"--hidden={sizes}"])
    assert "expected positive integers such as 1024,1024" in capsys.readouterr().err


def test_divergence_is_said_and_nothing_is_saved(blobs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = tmp_path / "m.safetensors"
    wild = ["--learning-rate", "1e30", "--momentum", "0"]
    assert main(["train", "--data", str(blobs), *SMALL, *wild, "--output", str(model)]) == 2
    error = capsys.readouterr().err
    assert "in step" in error and "lower the learning rate (it is 1e+30)" in error
    assert not model.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
@pytest.mark.parametrize("moment", ["before an epoch has ended", "later"])
def test_ctrl_c_keeps_the_best_epoch(moment: str, tmp_path: Path) -> None:
    hidden = "3000,3000" if moment != "later" else "256"
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "bpgpu", "train", "--epochs", "100000", "--hidden", hidden],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )  # fmt: skip
    assert process.stdout is not None
    wanted = "MLP(" if moment != "later" else "epoch 3/"
    for line in process.stdout:
        if line.startswith(wanted):
            break
    if moment != "later":
        time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    out, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "Traceback" not in error
    model = tmp_path / "bpgpu-model.safetensors"
    if moment == "later":
        assert "keeping the best epoch so far" in out and "test accuracy" in out
        assert bpgpu.load(model).layers == (784, 256, 10)
    else:
        assert "nothing was written" in error and not model.exists()


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT")
def test_after_ctrl_c_in_the_first_epoch_the_checkpoint_goes_on(tmp_path: Path) -> None:
    arguments = ["train", "--hidden", "1000", "--epochs", "2", "--batch-size", "1", "--checkpoint", "c"]
    process = subprocess.Popen(
        [sys.executable, "-m", "bpgpu", *arguments, "--checkpoint-seconds", "0"], cwd=tmp_path,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    for _ in range(6000):
        if (tmp_path / "c").exists():
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130 and "before the end of the first epoch; --resume goes on from c" in error
    resumed = run(*arguments, "--resume", "--epochs", "1", cwd=tmp_path)
    assert resumed.returncode == 0 and "resuming from c" in resumed.stdout, resumed.stderr


def test_info(tmp_path: Path) -> None:
    result = run("info", cwd=tmp_path)
    assert result.returncode == 0 and result.stderr == ""
    for word in (f"bpgpu {bpgpu.__version__}", "backend cpu: available", "backend cuda: ", "threads: ", "BLAS", "numba 0."):
        assert word in result.stdout


def test_a_full_disk_ends_in_one_sentence(blobs: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("there is no /dev/full here")
    process = subprocess.run(
        [sys.executable, "-c", "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100));"
         "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
         "from bpgpu.cli import main; sys.exit(main(sys.argv[1:]))",
         "train", "--data", str(blobs), *SMALL, "--output", "m.safetensors"],
        cwd=blobs.parent, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert process.returncode == 2, process.stderr
    assert process.stderr.startswith("bpgpu: ") and process.stderr.count("\n") == 1
    assert [p.name for p in blobs.parent.iterdir()] == ["blobs.csv"]


@pytest.mark.parametrize("full", ["m.safetensors", "c"])
def test_a_full_disk_costs_no_training(
    full: str, blobs: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model goes to the folder for temporary files; without a checkpoint the training ends, and its model is kept."""
    original, writes = files.os.replace, iter(range(99))

    def replace(source: str, target: Path) -> None:
        if Path(target).parent == blobs.parent and Path(target).name == full and (full != "c" or next(writes) == 5):
            raise OSError(28, "No space left on device")
        original(source, target)

    monkeypatch.chdir(blobs.parent)
    monkeypatch.setattr(tempfile, "tempdir", str(blobs.parent / "elsewhere"))
    (blobs.parent / "elsewhere").mkdir()
    monkeypatch.setattr(files.os, "replace", replace)
    arguments = ["--output", str(blobs.parent / "m.safetensors"), "--checkpoint", str(blobs.parent / "c")]
    assert main(["train", "--data", str(blobs), *SMALL, "--checkpoint-seconds", "0", *arguments]) == 2
    out, error = capsys.readouterr()
    assert "test accuracy 100.00%" in out and error.startswith("bpgpu: ") and error.count("\n") == 1
    assert f"{full} cannot be written (No space left on device); " in error
    model = blobs.parent / "m.safetensors"
    if full == model.name:
        (model,) = (blobs.parent / "elsewhere").rglob("m.safetensors")
        assert f"; the network is in {model}\n" in error
    assert 0 < bpgpu.load(model).epochs_trained <= 20
