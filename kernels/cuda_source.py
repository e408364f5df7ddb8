"""The text of a CUDA kernel, ready to compile: what constants.py, records.py and the options say, then the .cu file.

Everything that the two sides share is written here from the Python that the CPU kernels use, so there is one definition of
each constant and of each record.  Importing this file needs NumPy alone.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from . import constants, records
from .machine import CHUNK
from .names import HYPER, SAVES_Z

FOLDER = Path(__file__).parent
COLUMNS = 32  # that a block of column_sum.cuh sums, a lane a column
_NUMBERS = "INV_LN2 INV_SQRT_2PI SQRT_2 SCALED_TANH TANH_SCALE LEAK SELU_SCALE SELU_ALPHA".split()
_OF_DTYPE = "ln2_high ln2_low exp_lowest exp_highest expm1_lowest tanh_highest smallest_normal tail_center".split()
_RECORDS = (
    "UPDATE PRODUCT SPLIT FORWARD HIDDEN COLUMN_SUM FLAT_UPDATE OUTPUT ACTIVATE GATHER DROPOUT "
    "SQUARES CLIP MAX_NORM EXAMPLE_NORMS CLIP_EXAMPLES TOTAL PARTS STEP"
).split()

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


def source(name: str, dtype: str | None, options: tuple[str, ...], **sizes: int) -> tuple[str, str]:
    """(text, name of the entry point) of the kernel in NAME.cu; sizes become macros such as THREADS."""
    entry = "_".join((name, dtype or "bytes", *options, *map(str, sizes.values())))
    macros: dict[str, Any] = {"KERNEL": entry, "CHUNK": CHUNK, "COLUMNS": COLUMNS, **sizes, **_option_macros(name, options)}
    lines = ["#define FUNCTION __device__ __forceinline__", "typedef long long int64;"]
    lines += [f"enum {{ {', '.join(HYPER).upper()} }};  // where in `hyper` each number of an update is"]
    lines += [f"#define {key} {value}" for key, value in macros.items()]
    lines += [_struct(record) for record in _RECORDS]
    if dtype is not None:
        lines += [_dtype_text(dtype)]
    return "\n".join(lines) + "\n" + _with_includes(f"{name}.cu", set()), entry


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
