"""The package as it is installed: the wheel, its files, and how it imports from another folder."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    tracked = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if tracked.returncode != 0:
        pytest.skip("not a git checkout")
    for name in filter(None, tracked.stdout.decode().split("\0")):
        if not (ROOT / name).exists():
            continue
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        if (ROOT / name).is_symlink():
            target.symlink_to(os.readlink(ROOT / name), target_is_directory=True)
        else:
            target.write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(folder), str(source)]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_what_it_should(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    for needed in (
        "bpgpu/__init__.py", "bpgpu/py.typed", "bpgpu/page.html", "bpgpu/kernels/product.py", "bpgpu/kernels/README.md",
        "bpgpu/mnist10k/train-images-idx3-ubyte.gz", "bpgpu/mnist10k/README.md",
    ):  # fmt: skip
        assert needed in names
    assert not [n for n in names if n.startswith(("tests", "bench", "kernels"))]
    assert wheel.stat().st_size < 2_500_000


def test_the_wheel_trains_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(tmp_path / "site"), str(wheel)]
    subprocess.run(install, check=True, capture_output=True, timeout=120)
    code = (
        "import bpgpu, sys; print(bpgpu.__file__); d = bpgpu.mnist10k();"
        "net = bpgpu.MLP([784, 16, 10]); print(net.train_step(d.X[:32], d.y[:32], bpgpu.SGD(0.1)))"
    )
    variables = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=variables, capture_output=True, text=True, check=True, timeout=120
    )
    file, loss = result.stdout.split()
    assert Path(file).is_relative_to(tmp_path) and 0 < float(loss) < 10
