"""The text of a CUDA kernel, ready to compile: what constants.py, records.py and the options say, then the .cu file.

Everything that the two sides share is written here from the Python that the CPU kernels use, so there is one definition of
each constant and of each record.  Importing this file needs NumPy alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from . import constants, records
from .machine import CHUNK
from .names import HYPER, SAVES_Z

FOLDER = Path(__file__).parent
COLUMNS = 32  # that a block of column_sum.cuh sums, a lane a column
_NUMBERS = "INV_LN2 INV_SQRT_2PI SQRT_2 SCALED_TANH TANH_SCALE LEAK SELU_SCALE SELU_ALPHA".split()
_OF_DTYPE = "ln2_high ln2_low exp_lowest exp_highest expm1_lowest tanh_highest smallest_normal tail_center".split()
RECORDS = {  # the arguments of each kernel
    "dense_forward": ("PRODUCT", "SPLIT", "FORWARD"), "hidden_delta": ("PRODUCT", "SPLIT", "HIDDEN"),
    "dense_gradient": ("PRODUCT", "SPLIT", "UPDATE", "COLUMN_SUM"), "column_sum": ("COLUMN_SUM",), "update": ("FLAT_UPDATE",),
    "output_delta": ("OUTPUT",), "activate": ("ACTIVATE",), "amplify": ("ACTIVATE",), "gather": ("GATHER", "STEP"),
    "dropout": ("DROPOUT", "STEP"), "squares": ("SQUARES",), "clip": ("CLIP", "STEP"), "max_norm": ("MAX_NORM",),
    "example_norms": ("EXAMPLE_NORMS",), "clip_examples": ("CLIP_EXAMPLES",), "total": ("TOTAL", "STEP"), "parts": ("PARTS",),
    "advance": ("STEP",),
}  # fmt: skip
_COMMON = "activations.cuh", "losses.cuh", "update.cuh"  # which no macro of a kernel changes, and what they include
_BLOCK = """
struct Block {  // of threads, one of width x height that do an operation
    int x, y, width, height, thread;
    void* shared;  // a kernel's own struct Shared
};
struct Shared {};  // of the kernels that need none"""

_FLOAT32 = """
typedef float real;
typedef int bits;
FUNCTION real from_bits(bits b) { return __int_as_float(b); }
FUNCTION bits to_bits(real x) { return __float_as_int(x); }
FUNCTION real fused(real a, real b, real c) { return __fmaf_rn(a, b, c); }
FUNCTION real round_even(real x) { return rintf(x); }
FUNCTION real magnitude(real x) { return fabsf(x); }
FUNCTION real root(real x) { return sqrtf(x); }
FUNCTION real with_sign(real x, real sign) { return copysignf(x, sign); }
FUNCTION real infinity() { return __int_as_float(0x7f800000); }
FUNCTION real not_a_number() { return __int_as_float(0x7fc00000); }
"""
_FLOAT64 = """
typedef double real;
typedef long long bits;
FUNCTION real from_bits(bits b) { return __longlong_as_double(b); }
FUNCTION bits to_bits(real x) { return __double_as_longlong(x); }
FUNCTION real fused(real a, real b, real c) { return __fma_rn(a, b, c); }
FUNCTION real round_even(real x) { return rint(x); }
FUNCTION real magnitude(real x) { return fabs(x); }
FUNCTION real root(real x) { return sqrt(x); }
FUNCTION real with_sign(real x, real sign) { return copysign(x, sign); }
FUNCTION real infinity() { return __longlong_as_double(0x7ff0000000000000LL); }
FUNCTION real not_a_number() { return __longlong_as_double(0x7ff8000000000000LL); }
"""
_WAIT = """
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900  // where launches overlap (bpgpu/early.py); otherwise these do nothing
    asm volatile("griddepcontrol.launch_dependents;");
    asm volatile("griddepcontrol.wait;" ::: "memory");
#endif"""


class Kernel(NamedTuple):
    """What is compiled: NAME.cu for a dtype (None: bytes) with its options; sizes are macros, THREADS of a block among them."""

    name: str
    dtype: str | None
    options: tuple[str, ...]
    sizes: tuple[tuple[str, int], ...]

    @property
    def entry(self) -> str:
        return "_".join((self.name, self.dtype or "bytes", *self.options, *(str(size) for _, size in self.sizes)))

    @property
    def threads(self) -> int:
        return dict(self.sizes)["THREADS"]


def source(kernel: Kernel) -> str:
    """The text of one kernel, launched on its own as kernel.entry with its records as arguments."""
    parameters = ", ".join(f"{record} p{i}" for i, record in enumerate(RECORDS[kernel.name]))
    arguments = ", ".join(f"p{i}" for i in range(len(RECORDS[kernel.name])))
    return f"""{_prelude(kernel.dtype)}{_namespace(0, kernel, set())}
extern "C" __global__ void __launch_bounds__({kernel.threads}, 1) {kernel.entry}({parameters}) {{{_WAIT}
    __shared__ alignas(16) k0::Its shared;
    k0::run({arguments}, Block{{(int)blockIdx.x, (int)blockIdx.y, (int)gridDim.x, (int)gridDim.y, (int)threadIdx.x, &shared}});
}}
"""


def team_source(kernels: Sequence[Kernel]) -> str:
    """The text of team.cu, entry point "team", which runs these kernels, of as many threads each, by their numbers.

    ValueError: they are for more than one dtype.
    """
    dtype, *others = sorted({kernel.dtype for kernel in kernels if kernel.dtype}) or ["float32"]
    if others:
        raise ValueError(f"operations on {dtype} and {others[0]} in one program; one launch takes one dtype: make two programs")
    common: set[str] = set()
    lines = [_prelude(dtype), *(_with_includes(file, common) for file in _COMMON)]
    lines += [_namespace(number, kernel, set(common)) for number, kernel in enumerate(kernels)]
    lines += ["union Shared_by_all {", *(f"    k{number}::Its its{number};" for number in range(len(kernels))), "};"]
    lines.append("FUNCTION void run(int64 kernel, const char* records, const STEP& step, const Block& block) {")
    lines.append("    switch (kernel) {")
    for number, kernel in enumerate(kernels):
        lines.append(f"        case {number}: k{number}::run({', '.join(_from_table(kernel))}, block); break;")
    lines += ["    }", "}", f"#define THREADS {kernels[0].threads}"]
    return "\n".join(lines) + "\n" + _with_includes("team.cu", common)


def _from_table(kernel: Kernel) -> Iterator[str]:
    """The arguments of a kernel whose records lie one behind the other."""
    place = 0
    for name in RECORDS[kernel.name]:
        if name == "STEP":
            yield "step"
        else:
            yield f"*(const {name}*)(records + {place})"
            place += getattr(records, name).itemsize


def _prelude(dtype: str | None) -> str:
    """What all kernels for a dtype have in common."""
    structs = dict.fromkeys(("UPDATE", *(record for its in RECORDS.values() for record in its), "WORK", "TEAM_OF_BLOCKS"))
    lines = ["#define FUNCTION __device__ __forceinline__", "typedef long long int64;"]
    lines += [f"enum {{ {', '.join(HYPER).upper()} }};  // where in `hyper` each number of an update is"]
    lines += [f"#define CHUNK {CHUNK}", f"#define COLUMNS {COLUMNS}", *map(_struct, structs), _BLOCK]
    return "\n".join(lines) + "\n" + ("" if dtype is None else _dtype_text(dtype)) + "\n"


def _namespace(number: int, kernel: Kernel, seen: set[str]) -> str:
    """The file of a kernel under its macros: k3::run, and Its, the memory that a block of it shares."""
    macros = dict(kernel.sizes) | _option_macros(kernel.name, kernel.options)
    lines = [f"namespace k{number} {{", *(f"#define {name} {value}" for name, value in macros.items())]
    lines += [_with_includes(f"{kernel.name}.cu", seen), "typedef Shared Its;"]
    return "\n".join([*lines, *(f"#undef {name}" for name in macros), "}"]) + "\n"


def _option_macros(name: str, options: tuple[str, ...]) -> dict[str, Any]:
    if name in ("dense_forward", "hidden_delta", "activate", "amplify"):
        return {"OPTION": f"f_{options[0]}"}
    if name in ("dense_gradient", "column_sum", "update"):
        return {"OPTION": f"r_{options[0]}"}
    if name == "output_delta":
        loss, activation, targets = options
        return {
            "LOSS": f"c_{loss}", "OPTION": f"f_{activation}", "LABELS": int(targets == "labels"),
            "SOFTMAX": int(activation == "softmax"), "SAVES_Z": int(activation in SAVES_Z),
        }  # fmt: skip
    return {}


def _struct(name: str) -> str:
    record: np.dtype[np.void] = getattr(records, name)
    assert record.names is not None
    fields = [f"{'UPDATE' if record[field].names else 'int64'} {field};" for field in record.names]
    return f"struct {name} {{ {' '.join(fields)} }};"


def _dtype_text(dtype: str) -> str:
    of_dtype = constants.CONSTANTS[dtype]
    numbers = {name: getattr(constants, name) for name in _NUMBERS}
    numbers |= {name.upper(): getattr(of_dtype, name) for name in _OF_DTYPE}
    numbers["SCALE_UP"] = 2.0**of_dtype.fraction_bits
    lines = [f"#define {name} ({value!r})" for name, value in numbers.items()]
    bias = 127 if dtype == "float32" else 1023
    lines += [f"#define FRACTION_BITS {of_dtype.fraction_bits}", f"#define EXPONENT_BIAS {bias}"]
    lines.append(_FLOAT32 if dtype == "float32" else _FLOAT64)
    for name in ("exp_series", "log_series", "tail"):
        lines.append(_polynomial(name, getattr(of_dtype, name)))
    return "\n".join(lines)


def _polynomial(name: str, coefficients: tuple[float, ...]) -> str:
    """Horner's rule with fma, as vector.polynomial does it."""
    steps = " ".join(f"s = fused(s, x, (real){c!r});" for c in coefficients[-2::-1])
    return f"FUNCTION real {name}(real x) {{ real s = (real){coefficients[-1]!r}; {steps} return s; }}"


def _with_includes(file: str, seen: set[str]) -> str:
    """The text of a file with its #include "..." in place, each once: a compiler in memory has no folder to look in."""
    if file in seen:
        return ""
    seen.add(file)
    text = (FOLDER / file).read_text(encoding="utf-8").replace("#pragma once\n", "")
    return re.sub(r'#include "(.+?)"\n', lambda match: _with_includes(match[1], seen), text)
