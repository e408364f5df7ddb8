"""What can be known of the real CuPy and nvmath-python without a GPU: that bpgpu calls what they have, and what is said
where something is missing.  Skipped where they are not installed; python -m pip install 'bpgpu[fast13]' does.
"""

from __future__ import annotations

import ctypes.util
import importlib.util
import os
import re
import subprocess
import sys
from contextlib import nullcontext, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import bpgpu
from bpgpu import BackendUnavailable, gpu
from bpgpu.kernels import cuda_source, disk
from bpgpu.tiles import TILES
from tests.emulator import available
from tests.emulator.driver import stand_in


def installed(package: str) -> bool:
    with suppress(PackageNotFoundError):
        return bool(version(package))
    return False


ROOT = Path(__file__).parent.parent
emulated = pytest.mark.skipif(available() is not None, reason=f"no emulator here: {available()}")
with_cupy = pytest.mark.skipif(importlib.util.find_spec("cupy") is None, reason="CuPy is not installed")
with_nvmath = pytest.mark.skipif(importlib.util.find_spec("nvmath") is None, reason="nvmath-python is not installed")
DRIVER = ctypes.util.find_library("cuda")


def python(code: str, environment: dict[str, str] | None = None) -> str:
    command = [sys.executable, "-W", "ignore", "-c", code]
    environment = {**(environment or os.environ), "PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout.strip()


# -- something is missing -----------------------------------------------------------------------------------------------


def test_without_cupy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert (
        gpu.why_not() == "CuPy is not installed; python -m pip install 'bpgpu[cuda13]' (or 'bpgpu[cuda12]' for an older driver)"
    )


@with_cupy
@pytest.mark.skipif(DRIVER is not None, reason="there is a driver here")
def test_cupy_without_a_driver() -> None:
    assert python("import bpgpu; print(bpgpu.backends()['cuda'])").startswith("there is no NVIDIA driver here; install one")
    said = python("import bpgpu.cli; print(bpgpu.cli.main(['train', '--backend', 'cuda']))").splitlines()
    assert said == ["2"]


@with_cupy
@emulated
def test_cupy_with_an_older_driver_or_without_a_gpu(tmp_path: Path) -> None:
    print_reason = "import bpgpu; print(bpgpu.backends()['cuda'])"
    own = int(python("import cupy; print(cupy.cuda.runtime.runtimeGetVersion())"))
    major = own // 1000
    said = python(print_reason, stand_in(tmp_path, 11040))
    assert said == f"CuPy is for CUDA {major}.{own % 1000 // 10} and the NVIDIA driver for CUDA 11.4; update the driver"
    if major == 13:
        said = python(print_reason, stand_in(tmp_path, 12020))
        mend = "python -m pip uninstall -y cupy-cuda13x && python -m pip install 'bpgpu[cuda12]', or update the driver"
        assert said == f"CuPy is for CUDA 13.{own % 1000 // 10} and the NVIDIA driver for CUDA 12.2; {mend}"
    said = python(print_reason, stand_in(tmp_path, major * 1000))
    assert said.startswith("CuPy finds no usable GPU (cudaErrorNoDevice: ") and "nvidia-smi, CUDA_VISIBLE_DEVICES" in said


@with_cupy
def test_cupy_without_a_compiler() -> None:
    """As if there were a GPU and a driver, with what CuPy says when it does not find the library."""
    code = """
import cupy, ctypes
runtime = cupy.cuda.runtime
runtime.driverGetVersion, runtime.getDeviceCount = runtime.runtimeGetVersion, lambda: 1
def fail(): raise RuntimeError("CuPy failed to load libnvrtc.so.13: OSError: libnvrtc.so.13: cannot open shared object file")
cupy.cuda.nvrtc.getVersion = fail
import bpgpu
print(bpgpu.backends()["cuda"])
"""
    said = python(code)
    assert said.startswith("CuPy finds no compiler (CuPy failed to load libnvrtc.so.13: ") and "'bpgpu[cuda13]'" in said


ONLY_WHEELS = """
import os, cuda.pathfinder
os.environ.pop("CUDA_PATH", None)
find = cuda.pathfinder.find_nvidia_header_directory
def find_in_wheels(name):
    found = find(name)
    return found if found and "site-packages" in found and INSTALLED else None
cuda.pathfinder.find_nvidia_header_directory = find_in_wheels
import cupy
from cupy._core.core import assemble_cupy_compiler_options
"""  # as on a machine that has a driver and no CUDA toolkit


@with_cupy
def test_cupy_without_cudas_headers() -> None:
    """What CuPy says when it compiles the first kernel of its own."""
    code = f"""
INSTALLED = False
{ONLY_WHEELS}
class Array:
    def __add__(self, other):
        assemble_cupy_compiler_options(())
runtime = cupy.cuda.runtime
runtime.driverGetVersion, runtime.getDeviceCount, cupy.ones = runtime.runtimeGetVersion, lambda: 1, lambda n: Array()
import bpgpu
print(bpgpu.backends()["cuda"])
"""
    said = python(code)
    assert said.startswith("CuPy finds no headers (Failed to find CUDA headers. ") and "'bpgpu[cuda13]'" in said


@with_cupy
@pytest.mark.skipif(not installed("nvidia-cuda-runtime"), reason="the wheel nvidia-cuda-runtime is not installed")
def test_the_wheels_of_the_extra_are_enough_for_cupys_kernels() -> None:
    assert "-I" in python(f"INSTALLED = True\n{ONLY_WHEELS}\nprint(assemble_cupy_compiler_options(()))")


def test_why_there_is_no_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    reason = gpu.why_not()
    if reason is None:
        pytest.skip("there is a GPU here")
    assert bpgpu.backends()["cuda"] == reason
    with pytest.raises(BackendUnavailable) as error:
        bpgpu.get_backend("cuda")
    assert str(error.value) == reason and reason.count("\n") == 0
    for word in ("bpgpu[cuda13]", "nvidia-smi"):
        if word in reason:
            break
    else:
        raise AssertionError(f"no mend in {reason!r}")


def test_auto_falls_back_and_says_so_once() -> None:
    if gpu.why_not() is None:
        pytest.skip("there is a GPU here")
    code = "import bpgpu; print([bpgpu.get_backend('auto').name for _ in range(3)])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert result.stdout.strip() == "['cpu', 'cpu', 'cpu']"
    assert result.stderr.count("backend 'auto' is the CPU") == 1


@pytest.mark.parametrize("name", ["cuda:x", "cuda:-1", "cpu:1", "auto:0", "cuda1"])
def test_names_that_are_no_backend(name: str) -> None:
    with pytest.raises(ValueError, match="unknown backend"):
        bpgpu.get_backend(name)


# -- CuPy's side of gpu.py ---------------------------------------------------------------------------------------------


@with_cupy
def test_every_name_that_is_called_is_there() -> None:
    import cupy
    import cupyx

    text = Path(gpu.__file__).read_text(encoding="utf-8")
    names = set(re.findall(r"\bcupy\.([\w.]+\w)", text)) | {f"cuda.runtime.{n}" for n in re.findall(r"\bruntime\.(\w+)", text)}
    assert len(names) > 15
    for name in names:
        found = cupy
        for part in name.split("."):
            found = getattr(found, part)
    assert callable(cupyx.empty_pinned)
    for kind, methods in (
        (cupy.cuda.Stream, "begin_capture end_capture record wait_event ptr __enter__ __eq__"),
        (cupy.cuda.Event, "synchronize"), (cupy.cuda.Graph, "launch"), (cupy.cuda.Module, "load get_function"),
        (cupy.cuda.Function, "ptr __call__"), (cupy.cuda.Device, "__enter__ __exit__"),
        (cupy.ndarray, "set copy astype data device flags strides __array_ufunc__ __array_function__ __dlpack__"),
    ):  # fmt: skip
        for method in methods.split():
            assert hasattr(kind, method) or method in ("ptr",), (kind, method)


@with_cupy
@pytest.mark.skipif(DRIVER is not None, reason="there is a driver here")
def test_records_are_arguments_of_kernels() -> None:
    """CuPy takes arguments before it looks for a driver: a record passes, what is no argument is a TypeError before."""
    import cupy
    from cupy.cuda.function import Function

    from bpgpu.kernels import records
    from bpgpu.launching import new_record

    function, stream = Function.__new__(Function), type("Stream", (), {"ptr": 0})()
    for name in {"TEAM_OF_BLOCKS", *(name for its in cuda_source.RECORDS.values() for name in its)}:
        how = {"stream": stream, "enable_cooperative_groups": name == "TEAM_OF_BLOCKS"}
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError, match="Driver"):
            function((1, 1, 1), (1, 1, 1), (new_record(getattr(records, name)),), **how)
    with pytest.raises(TypeError):
        function((1, 1, 1), (1, 1, 1), (np.zeros(2),), stream=stream)


class Module:
    """Stands for the driver, to which machine code is given; keeps it."""

    loaded: list[bytes] = []  # noqa: RUF012

    def load(self, code: bytes) -> None:
        self.loaded.append(code)

    def get_function(self, name: str) -> Any:
        return SimpleNamespace(ptr=0, name=name)


@with_cupy
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_what_the_gpu_is_given_flushes_no_subnormals(dtype: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As PTX, which a GPU gets that is younger than the compiler: IEEE operations, of which none is contracted."""
    import cupy

    monkeypatch.setattr(disk, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(cupy.cuda, "Module", Module)
    monkeypatch.setattr(cupy.cuda.driver, "funcGetAttribute", lambda attribute, function: 32)
    monkeypatch.setattr(gpu.CuPyDevice, "here", lambda self: nullcontext(cupy))
    device = gpu.CuPyDevice.__new__(gpu.CuPyDevice)
    device._device = SimpleNamespace(compute_capability="999")
    for options in (("dense_forward", dtype, ("gelu",)), ("dense_gradient", dtype, ("adam",))):
        kernel = cuda_source.Kernel(*options, (*TILES[dtype][-1].macros.items(), ("ALIGNED", 1)))
        text, name = cuda_source.source(kernel), kernel.entry
        for _ in range(2):  # compiled, then from the disk
            assert device.compile(text, [name])[name].name == name
        assert len(list(tmp_path.glob("*.kernel"))) == 1 and Module.loaded[-2] == Module.loaded[-1]
        ptx = Module.loaded[-1].decode()
        operations = set(re.findall(r"\b(?:add|sub|mul|fma|div|rcp|sqrt)\.[\w.]*f(?:32|64)", ptx))
        assert {f"{o}.rn.f{dtype[-2:]}" for o in ("add", "mul", "fma")} < operations
        assert all(re.fullmatch(r"(add|sub|mul|fma|div|rcp|sqrt)\.rn\.f(32|64)", o) for o in operations), operations
        for file in tmp_path.glob("*.kernel"):
            file.unlink()


# -- cuBLASLt's side of cublaslt.py -------------------------------------------------------------------------------------


def test_fast_modes_without_nvmath(monkeypatch: pytest.MonkeyPatch) -> None:
    from bpgpu.cublaslt import bindings

    monkeypatch.setitem(sys.modules, "nvmath.bindings", None)
    with pytest.raises(
        BackendUnavailable, match=r"need nvmath-python and cuBLAS \(.*\); python -m pip install 'bpgpu\[fast13\]'"
    ):
        bindings()


@with_nvmath
@emulated
@pytest.mark.parametrize("precision", ["fp32-tc", "tf32", "bf16"])
@pytest.mark.parametrize("turned", ["neither", "A", "B"])
def test_cublaslt_is_told_the_product(tmp_path: Path, precision: str, turned: str) -> None:
    """The library takes the description, and what it reads back is C^T = B^T A^T of column-major matrices."""
    code = f"""
import numpy as np
from bpgpu.cublaslt import Description
from nvmath.bindings import cublasLt as lt
shapes = {{"neither": ((5, 7), (7, 3)), "A": ((7, 5), (7, 3)), "B": ((5, 7), (3, 7))}}["{turned}"]
A, B = (np.zeros(s, "f4") for s in shapes)
d = Description("{precision}", A, B, np.zeros((5, 3), "f4"), {turned == "A"}, {turned == "B"}, 4096, True, (4, 16, 64))
def read(of, get, kind, names, dtype):
    values = []
    for name in names.split():
        attribute, size = getattr(kind, name), np.zeros(1, np.uint64)
        value = np.zeros(1, dtype(attribute))
        get(of, attribute, value.ctypes.data, value.nbytes, size.ctypes.data)
        values.append(int(value[0]))
    return values
print(read(d.operation, lt.matmul_desc_get_attribute, lt.MatmulDescAttribute,
    "TRANSA TRANSB EPILOGUE BIAS_POINTER COMPUTE_TYPE SCALE_TYPE POINTER_MODE", lt.get_matmul_desc_attribute_dtype))
for layout in d.layouts:
    print(read(layout, lt.matrix_layout_get_attribute, lt.MatrixLayoutAttribute,
        "TYPE ROWS COLS LD ORDER", lt.get_matrix_layout_attribute_dtype))
print(read(d.preference, lt.matmul_preference_get_attribute, lt.MatmulPreferenceAttribute,
    "MIN_ALIGNMENT_A_BYTES MIN_ALIGNMENT_B_BYTES MIN_ALIGNMENT_C_BYTES MIN_ALIGNMENT_D_BYTES",
    lt.get_matmul_preference_attribute_dtype))
"""
    operation, B, A, C, alignments = (eval(line) for line in python(code, stand_in(tmp_path, 13000)).splitlines())
    relu_bias, float32 = 6, 0
    assert operation == [turned == "B", turned == "A", relu_bias, 4096, 75 if precision == "bf16" else 77, float32, 0]
    assert ([float32, 7, 3, 7, 0] if turned == "B" else [float32, 3, 7, 3, 0]) == B
    assert ([float32, 5, 7, 5, 0] if turned == "A" else [float32, 7, 5, 7, 0]) == A
    assert [float32, 3, 5, 3, 0] == C and alignments == [16, 4, 64, 64]
