"""Every scalar function on every one of the 2^32 float32 numbers: the CPU's kernel against the CUDA source compiled by g++.

    python -m pytest -s -m exhaustive tests/test_every_float32.py        prints the table; minutes for each function

The bits are the same, except that any NaN is as good as another; and each result is compared with a formula in double, whose
own error is below 1e-6 of a float32's unit in the last place (ulp).  Without the marker: every 4099th number.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from bpgpu.kernels import compiler
from bpgpu.kernels.activations import activation
from bpgpu.kernels.cuda_source import Kernel, source
from bpgpu.kernels.functions import functions
from bpgpu.kernels.machine import lanes
from bpgpu.kernels.names import ACTIVATIONS
from bpgpu.kernels.vector import absolute, load, njit, store
from tests.emulator import EmulatedDevice, available

pytestmark = pytest.mark.skipif(available() is not None, reason=f"no emulator here: {available()}")
BLOCK = 1 << 22

# name: the CUDA expression, the truth in double, and the largest error in ulp (what it is made of: test_functions.py)
SIGMOID = "(x < 0 ? exp(x) / (1 + exp(x)) : 1 / (1 + exp(-x)))"
EXPRESSIONS = {
    "exp": ("exp_(x)", "exp(x)", 1.5),
    "expm1": ("expm1_(x)", "expm1(x)", 2.0),
    "log": ("log_(x)", "log(x)", 1.5),
    "log1p": ("log1p_(x < 0 ? -x : x)", "log1p(x < 0 ? -x : x)", 2.0),
    "normal": ("normal_(x).below", "0.5 * erfc(-x * M_SQRT1_2)", 6.0),
    "density": ("normal_(x).density", "exp(-0.5 * x * x) * INV_SQRT_2PI", 3.0),
    "identity": ("f_identity::f(x)", "x", 0.0),
    "sigmoid": ("f_sigmoid::f(x)", SIGMOID, 3.0),
    "tanh": ("f_tanh::f(x)", "tanh(x)", 3.0),
    "scaled_tanh": ("f_scaled_tanh::f(x)", "SCALED_TANH * tanh(x * (2.0 / 3.0))", 5.0),
    "relu": ("f_relu::f(x)", "x < 0 ? 0 : x", 0.0),
    "leaky_relu": ("f_leaky_relu::f(x)", "x < 0 ? x / 100 : x", 2.0),
    "elu": ("f_elu::f(x)", "x < 0 ? expm1(x) : x", 2.0),
    "selu": ("f_selu::f(x)", "SELU_SCALE * (x < 0 ? SELU_ALPHA * expm1(x) : x)", 5.0),
    "gelu": ("f_gelu::f(x)", "isinf(x) ? (x < 0 ? NAN : x) : x * 0.5 * erfc(-x * M_SQRT1_2)", 7.0),
    "silu": ("f_silu::f(x)", f"isinf(x) ? (x < 0 ? NAN : x) : x * {SIGMOID}", 4.0),
    "softplus": ("f_softplus::f(x)", "(x > 0 ? x : 0) + log1p(exp(-fabs(x)))", 4.0),
}
# f' as a function of what is saved, the bits alone: its accuracy is that of sums which may pass through zero
EXPRESSIONS |= {f"gain of {name}": (f"f_{name}::gain(x)", "", 0.0) for name in ACTIVATIONS}

HARNESS = """
struct Found { int64 differing, first; double worst, at; };

extern "C" __global__ void compare(int64 of_cpu, int64 first, int64 step, int64 count, int64 found_at) {
    Found& found = *(Found*)found_at;
    for (int64 i = 0; i < count; i++) {
        const float number = __int_as_float((int)(unsigned)(first + i * step)), cpu = ((const float*)of_cpu)[i];
        float gpu;
        { const float x = number; gpu = CUDA; }
        if (to_bits(cpu) != to_bits(gpu) && !(cpu != cpu && gpu != gpu)) {
            if (found.differing++ == 0) found.first = (unsigned)to_bits(number);
        }
#ifdef TRUTH
        double truth;
        { const double x = number; truth = TRUTH; }
        if (truth != truth || gpu != gpu) {
            if ((truth != truth) != (gpu != gpu)) found.worst = INFINITY, found.at = number;
            continue;
        }
        const double top = 0x1p128;  // what stands for an infinity
        const double size = fabs(truth) < top ? fabs(truth) : top, got = fabs(gpu) < top ? gpu : copysign(top, gpu);
        const double quantum = ldexp(1.0, ilogb(size > 0x1p-126 ? (size < top ? size : 0x1p127) : 0x1p-126) - 23);
        double off = fabs(got - copysign(size, truth));
        if (SLACK && size < 0x1p-100) off -= fabs(number) * 0x1p-149;  // x times a factor that may be subnormal
        if (off > found.worst * quantum) found.worst = off / quantum, found.at = number;
#endif
    }
}
"""
FOUND = np.dtype([("differing", "i8"), ("first", "i8"), ("worst", "f8"), ("at", "f8")])


def cpu_function(name: str) -> Callable[[int, int, int], int]:
    """(address of the inputs, of the results, how many: a multiple of every vector's length)."""
    V = lanes("float32")
    F, step, size = functions(V), V.lanes, V.itemsize
    if name.startswith("gain of "):
        of_vector = activation(V, name.removeprefix("gain of "))[1]
    elif name in ACTIVATIONS:
        of_vector = activation(V, name)[0]
    elif name in ("normal", "density"):
        which, normal = ("normal", "density").index(name), F.normal

        @njit
        def of_vector(x: Any) -> Any:
            return normal(x)[which]
    elif name == "log1p":
        log1p = F.log1p

        @njit
        def of_vector(x: Any) -> Any:
            return log1p(absolute(x))
    else:
        of_vector = getattr(F, name)

    def run(inputs: int, results: int, count: int) -> None:
        for i in range(0, count, step):
            store(results + i * size, of_vector(load(V, inputs + i * size)))

    word = ctypes.c_ssize_t
    call = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, *[word] * 3)(
        compiler._load(*compiler._compile(run))
    )
    unused = ctypes.create_string_buffer(8)  # where Numba's function puts its result, None
    return lambda *arguments: call(unused, None, *arguments)


def compare(name: str, step: int) -> np.ndarray[Any, Any]:
    """All numbers whose bits are a multiple of `step`: how many differ, the first of them, the worst error and where."""
    of_cuda, truth, _ = EXPRESSIONS[name]
    text = source(Kernel("activate", "float32", ("identity",), (("THREADS", 1),)))
    macros = [f"#define CUDA ({of_cuda})", f"#define SLACK {int(name in ('gelu', 'silu'))}"]
    macros += [f"#define TRUTH ({truth})"] if truth else []
    device = EmulatedDevice()
    kernel = device.compile("\n".join([text, "using namespace k0;", *macros, HARNESS]), ["compare"])["compare"]
    of_cpu, found = cpu_function(name), np.zeros((), FOUND)
    results = np.empty(BLOCK, np.float32)
    for first in range(0, 2**32, BLOCK * step):
        count = min(BLOCK, -(-(2**32 - first) // step))
        inputs = (np.arange(BLOCK, dtype=np.uint64) * step + first).astype(np.uint32).view(np.float32)
        of_cpu(inputs.ctypes.data, results.ctypes.data, BLOCK)
        device.launch(
            kernel, (1, 1, 1), (1, 1, 1), [np.int64(v) for v in (results.ctypes.data, first, step, count, found.ctypes.data)]
        )
    return found


@pytest.mark.parametrize("name", EXPRESSIONS)
@pytest.mark.parametrize("step", [4099, pytest.param(1, marks=pytest.mark.exhaustive)], ids=["some", "every"])
def test_float32(name: str, step: int) -> None:
    found, (_, truth, bound) = compare(name, step), EXPRESSIONS[name]
    first = np.uint32(found["first"]).view(np.float32)
    error = f"{found['worst']:6.3f} ulp at {float(found['at']):.9g}" if truth else ""
    print(f"\n  {name:22} {-(-(2**32) // step):,} inputs, bits differing: {found['differing']}  {error}")
    assert found["differing"] == 0, f"{found['differing']} numbers differ, the first is {first!r}"
    assert found["worst"] <= bound
