"""A small vector type for Numba: what lets the CPU kernels be plain Python.

Two Numba types, each one LLVM value that lives in registers:

    Vector   `lanes` numbers of one dtype                + - * / < <= > >= == and unary -, also with a Python number
    Mask     `lanes` booleans, the result of a comparison   select

Memory is named by byte addresses and byte strides (plain integers). Every arithmetic operation is the IEEE one, rounded
once; `fma` is the only fusion and nothing is ever contracted, reassociated or flushed, so a kernel's bits depend neither on
the machine nor on the number of lanes.  A constant in an expression is rounded to the dtype.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.core.imputils import lower_constant
from numba.core.typing import signature
from numba.core.typing.templates import AbstractTemplate, infer_global
from numba.extending import intrinsic, lower_builtin, models, register_model, typeof_impl

from .machine import Lanes

# a function called by kernels, without what Numba adds for callers from Python (what several kernels call is made once)
njit = numba.njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True)
# one that is called in one place: each njit function is optimised on its own, and again in all that call it
inlined = numba.njit(error_model="numpy", no_cpython_wrapper=True, no_cfunc_wrapper=True, inline="always")
I32 = ir.IntType(32)
_ELEMENT = {"float32": ir.FloatType(), "float64": ir.DoubleType()}
_INTEGER = {"float32": ir.IntType(32), "float64": ir.IntType(64)}
_FRACTION_BITS = {"float32": 23, "float64": 52}


class Vector(types.Type):
    def __init__(self, dtype: str, lanes: int) -> None:
        self.dtype, self.lanes, self.itemsize = dtype, lanes, int(np.dtype(dtype).itemsize)
        self.element, self.integer = _ELEMENT[dtype], ir.VectorType(_INTEGER[dtype], lanes)
        self.llvm = ir.VectorType(self.element, lanes)
        super().__init__(f"vector({dtype} x {lanes})")


class Mask(types.Type):
    def __init__(self, lanes: int) -> None:
        self.llvm = ir.VectorType(ir.IntType(1), lanes)
        super().__init__(f"mask({lanes})")


@register_model(Vector)
@register_model(Mask)
class RegisterModel(models.PrimitiveModel):
    def __init__(self, dmm: Any, fe_type: Any) -> None:
        super().__init__(dmm, fe_type, fe_type.llvm)


# -- building blocks of the code generators below -------------------------------------------------------------------


def emit_splat(builder: Any, scalar: Any, vector: Vector) -> Any:
    undefined = ir.Constant(vector.llvm, ir.Undefined)
    first = builder.insert_element(undefined, scalar, I32(0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(I32, vector.lanes), [0] * vector.lanes))


def _to_vector(builder: Any, value: Any, ty: Any, vector: Vector) -> Any:
    """A Vector as it is; a float or an integer rounded to the vector's dtype and copied to every lane."""
    if ty == vector:
        return value
    if isinstance(ty, (types.Integer, types.IntegerLiteral)):
        value = builder.sitofp(value, vector.element)
    elif value.type != vector.element:
        value = (builder.fptrunc if vector.dtype == "float32" else builder.fpext)(value, vector.element)
    return emit_splat(builder, value, vector)


def emit_pointer(builder: Any, address: Any, pointee: Any) -> Any:
    return builder.inttoptr(address, pointee.as_pointer())


def emit_load(builder: Any, address: Any, vector: Vector) -> Any:
    value = builder.load(emit_pointer(builder, address, vector.llvm))
    value.align = vector.itemsize
    return value


def emit_store(builder: Any, value: Any, address: Any, vector: Vector) -> None:
    builder.store(value, emit_pointer(builder, address, vector.llvm)).align = vector.itemsize


def emit_opaque(builder: Any, value: Any) -> Any:
    """An integer of which LLVM does not know that it is `value`: of the addresses that are computed from it in a loop it would
    make a chain of additions, each of which waits for the one before."""
    return builder.asm(ir.FunctionType(value.type, [value.type]), "", "=r,0", [value], side_effect=False)


def _llvm(builder: Any, name: str, result: Any, arguments: list[Any]) -> Any:
    kind = ir.FunctionType(result, [a.type for a in arguments])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)


def _suffix(vector: Vector) -> str:
    return f"v{vector.lanes}f{vector.itemsize * 8}"


def emit_fma(builder: Any, a: Any, b: Any, c: Any, vector: Vector) -> Any:
    return _llvm(builder, f"llvm.fma.{_suffix(vector)}", vector.llvm, [a, b, c])


def _first_lanes(builder: Any, count: Any, vector: Vector) -> Any:
    """The mask of the first `count` lanes."""
    steps = ir.VectorType(I32, vector.lanes)
    undefined = ir.Constant(steps, ir.Undefined)
    bound = builder.insert_element(undefined, builder.trunc(count, I32), I32(0))
    bound = builder.shuffle_vector(bound, undefined, ir.Constant(steps, [0] * vector.lanes))
    return builder.icmp_signed("<", ir.Constant(steps, list(range(vector.lanes))), bound)


# -- operators -------------------------------------------------------------------------------------------------------


def _operand_vector(args: tuple[Any, ...]) -> Vector | None:
    vectors = {a for a in args if isinstance(a, Vector)}
    others = [a for a in args if not isinstance(a, Vector)]
    if len(vectors) == 1 and all(isinstance(a, (types.Number, types.Literal)) for a in others):
        return next(iter(vectors))
    return None


def _operator(symbol: Any, emit: Callable[[Any, Any, Any], Any], *, compares: bool = False) -> None:
    @infer_global(symbol)
    class _Typing(AbstractTemplate):
        def generic(self, args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
            vector = _operand_vector(args) if len(args) == 2 and not kws else None
            if vector is None:
                return None
            return signature(Mask(vector.lanes) if compares else vector, *args)

    def lower(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        vector = _operand_vector(sig.args)
        assert vector is not None
        return emit(builder, *(_to_vector(builder, a, t, vector) for a, t in zip(args, sig.args, strict=True)))

    for left, right in ((Vector, Vector), (Vector, types.Number), (types.Number, Vector)):
        lower_builtin(symbol, left, right)(lower)


_operator(operator.add, lambda b, x, y: b.fadd(x, y))
_operator(operator.sub, lambda b, x, y: b.fsub(x, y))
_operator(operator.mul, lambda b, x, y: b.fmul(x, y))
_operator(operator.truediv, lambda b, x, y: b.fdiv(x, y))
_operator(operator.lt, lambda b, x, y: b.fcmp_ordered("<", x, y), compares=True)
_operator(operator.le, lambda b, x, y: b.fcmp_ordered("<=", x, y), compares=True)
_operator(operator.gt, lambda b, x, y: b.fcmp_ordered(">", x, y), compares=True)
_operator(operator.ge, lambda b, x, y: b.fcmp_ordered(">=", x, y), compares=True)
_operator(operator.eq, lambda b, x, y: b.fcmp_ordered("==", x, y), compares=True)
_operator(operator.ne, lambda b, x, y: b.fcmp_unordered("!=", x, y), compares=True)


@infer_global(operator.neg)
class _NegTyping(AbstractTemplate):
    def generic(self, args: tuple[Any, ...], kws: dict[str, Any]) -> Any:
        return signature(args[0], args[0]) if isinstance(args[0], Vector) else None


@lower_builtin(operator.neg, Vector)
def _neg(context: Any, builder: Any, sig: Any, args: Any) -> Any:
    return builder.fneg(args[0])


# -- functions of vectors ----------------------------------------------------------------------------------------------


def _vector_of(*kinds: Any) -> Vector:
    vector = _operand_vector(kinds)
    assert vector is not None
    return vector


@intrinsic
def fma(typingctx: Any, a: Any, b: Any, c: Any) -> Any:
    """a * b + c, rounded once."""
    vector = _vector_of(a, b, c)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        x, y, z = (_to_vector(builder, v, t, vector) for v, t in zip(args, sig.args, strict=True))
        return emit_fma(builder, x, y, z, vector)

    return vector(a, b, c), emit


@intrinsic
def select(typingctx: Any, mask: Any, a: Any, b: Any) -> Any:
    """a where the mask holds, b elsewhere."""
    vector = _vector_of(a, b)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        x, y = (_to_vector(builder, v, t, vector) for v, t in zip(args[1:], sig.args[1:], strict=True))
        return builder.select(args[0], x, y)

    return vector(mask, a, b), emit


def polynomial(*coefficients: float) -> Any:
    """The function c0 + c1 x + c2 x^2 + ..., by Horner's rule with fma."""

    @intrinsic
    def evaluate(typingctx: Any, x: Any) -> Any:
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            constants = [ir.Constant(x.llvm, [_rounded(c, x)] * x.lanes) for c in coefficients]
            acc = constants[-1]
            for constant in constants[-2::-1]:
                acc = emit_fma(builder, acc, args[0], constant, x)
            return acc

        return x(x), emit

    return evaluate


def _rounded(number: float, vector: Vector) -> float:
    return float(np.dtype(vector.dtype).type(number))


def _unary(name: str) -> Any:
    @intrinsic
    def function(typingctx: Any, a: Any) -> Any:
        def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
            return _llvm(builder, f"llvm.{name}.{_suffix(a)}", a.llvm, list(args))

        return a(a), emit

    return function


sqrt = _unary("sqrt")
absolute = _unary("fabs")
round_even = _unary("rint")  # to the nearest integer, halves to even


@intrinsic
def copysign(typingctx: Any, magnitude: Any, sign: Any) -> Any:
    """|magnitude| with the sign of `sign`."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _llvm(builder, f"llvm.copysign.{_suffix(magnitude)}", magnitude.llvm, list(args))

    return magnitude(magnitude, sign), emit


@intrinsic
def power_of_two(typingctx: Any, n: Any) -> Any:
    """2^n for a vector of integral values in the range of normal exponents, made from bits (exact)."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = _FRACTION_BITS[n.dtype]
        bias = (1 << (n.integer.element.width - 2 - bits)) - 1
        exponent = builder.add(builder.fptosi(args[0], n.integer), ir.Constant(n.integer, [bias] * n.lanes))
        return builder.bitcast(builder.shl(exponent, ir.Constant(n.integer, [bits] * n.lanes)), n.llvm)

    return n(n), emit


@intrinsic
def exponent(typingctx: Any, x: Any) -> Any:
    """floor(log2 x) for positive normal x, as a vector of integral values (from bits, exact)."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = _FRACTION_BITS[x.dtype]
        bias = (1 << (x.integer.element.width - 2 - bits)) - 1
        raw = builder.lshr(builder.bitcast(args[0], x.integer), ir.Constant(x.integer, [bits] * x.lanes))
        return builder.sitofp(builder.sub(raw, ir.Constant(x.integer, [bias] * x.lanes)), x.llvm)

    return x(x), emit


@intrinsic
def mantissa(typingctx: Any, x: Any) -> Any:
    """x / 2^exponent(x) for positive normal x: in [1, 2) (from bits, exact)."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        bits = _FRACTION_BITS[x.dtype]
        fraction = builder.and_(builder.bitcast(args[0], x.integer), ir.Constant(x.integer, [(1 << bits) - 1] * x.lanes))
        bias = (1 << (x.integer.element.width - 2 - bits)) - 1
        return builder.bitcast(builder.or_(fraction, ir.Constant(x.integer, [bias << bits] * x.lanes)), x.llvm)

    return x(x), emit


# -- memory and tiles: what depends on the dtype and the machine ------------------------------------------------------


class _LanesType(types.Dummy):
    def __init__(self, value: Lanes) -> None:
        self.vector = Vector(value.dtype, value.lanes)
        super().__init__(repr(value))


register_model(_LanesType)(models.OpaqueModel)


@typeof_impl.register(Lanes)
def _typeof_lanes(value: Lanes, context: Any) -> _LanesType:
    return _LanesType(value)


@lower_constant(_LanesType)
def _lanes_constant(context: Any, builder: Any, ty: Any, value: Any) -> Any:
    return context.get_dummy_value()


@intrinsic
def splat(typingctx: Any, V: Any, x: Any) -> Any:
    """The number x in every lane."""
    return V.vector(V, x), lambda context, builder, sig, args: _to_vector(builder, args[1], x, V.vector)


@intrinsic
def load(typingctx: Any, V: Any, address: Any) -> Any:
    """The numbers at the address."""
    return V.vector(V, types.intp), lambda context, builder, sig, args: emit_load(builder, args[1], V.vector)


@intrinsic
def load_splat(typingctx: Any, V: Any, address: Any) -> Any:
    """The one number at the address, in every lane."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return emit_splat(builder, builder.load(emit_pointer(builder, args[1], V.vector.element)), V.vector)

    return V.vector(V, types.intp), emit


@intrinsic
def store(typingctx: Any, address: Any, v: Any) -> Any:
    """Write all lanes."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        emit_store(builder, args[1], args[0], v)
        return context.get_dummy_value()

    return types.void(types.intp, v), emit


@intrinsic
def load_first(typingctx: Any, V: Any, address: Any, count: Any) -> Any:
    """The first `count` numbers at the address, zeros behind them; nothing beyond is touched."""
    vector = V.vector

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        mask, pointer = _first_lanes(builder, args[2], vector), emit_pointer(builder, args[1], vector.llvm)
        zeros = ir.Constant(vector.llvm, [0.0] * vector.lanes)
        name = f"llvm.masked.load.{_suffix(vector)}.p0"
        return _llvm(builder, name, vector.llvm, [pointer, I32(vector.itemsize), mask, zeros])

    return vector(V, types.intp, types.intp), emit


@intrinsic
def store_first(typingctx: Any, address: Any, v: Any, count: Any) -> Any:
    """Write the first `count` lanes; nothing beyond is touched."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        mask, pointer = _first_lanes(builder, args[2], v), emit_pointer(builder, args[0], v.llvm)
        name = f"llvm.masked.store.{_suffix(v)}.p0"
        _llvm(builder, name, ir.VoidType(), [args[1], pointer, I32(v.itemsize), mask])
        return context.get_dummy_value()

    return types.void(types.intp, v, types.intp), emit


@njit
def load_up_to(V: Any, address: int, count: int) -> Any:
    """load, or load_first if fewer than `lanes` numbers count."""
    if count == lanes_of(V):
        return load(V, address)
    return load_first(V, address, count)


@njit
def store_up_to(V: Any, address: int, v: Any, count: int) -> None:
    """store, or store_first if fewer than `lanes` numbers count."""
    if count == lanes_of(V):
        store(address, v)
    else:
        store_first(address, v, count)


@intrinsic
def lanes_of(typingctx: Any, V: Any) -> Any:
    return types.intp(V), lambda context, builder, sig, args: ir.IntType(64)(V.vector.lanes)


@intrinsic
def load_number(typingctx: Any, V: Any, address: Any) -> Any:
    """The number at the address, as one of Numba's own."""
    number = types.float32 if V.vector.dtype == "float32" else types.float64

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(emit_pointer(builder, args[1], V.vector.element))

    return number(V, types.intp), emit


@intrinsic
def load_label(typingctx: Any, address: Any) -> Any:
    """The int64 at the address."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return builder.load(emit_pointer(builder, args[0], ir.IntType(64)))

    return types.intp(types.intp), emit


@intrinsic
def copy_bytes(typingctx: Any, target: Any, source: Any, count: Any) -> Any:
    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        to, start = (emit_pointer(builder, a, ir.IntType(8)) for a in args[:2])
        cgutils.raw_memcpy(builder, to, start, args[2], 1)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), emit


@intrinsic(prefer_literal=True)
def copy_row(typingctx: Any, V: Any, vectors: Any, source: Any, target: Any) -> Any:
    """Copy adjoining vectors; returns where the copy ends."""
    vector = V.vector
    size = vector.lanes * vector.itemsize

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        _, _, source, target = args
        for _ in range(vectors.literal_value):
            emit_store(builder, emit_load(builder, source, vector), target, vector)
            source, target = (builder.add(address, address.type(size)) for address in (source, target))
        return target

    return types.intp(V, vectors, types.intp, types.intp), emit


@intrinsic(prefer_literal=True)
def prefetch(typingctx: Any, V: Any, vectors: Any, address: Any) -> Any:
    """Bring memory that will be read soon to the second cache; it may be anywhere."""
    vector = V.vector
    size = vector.lanes * vector.itemsize
    read, near, data = (I32(n) for n in (0, 2, 1))

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        for v in range(vectors.literal_value):
            pointer = emit_pointer(builder, builder.add(args[2], args[2].type(v * size)), ir.IntType(8))
            _llvm(builder, "llvm.prefetch.p0", ir.VoidType(), [pointer, read, near, data])
        return context.get_dummy_value()

    return types.void(V, vectors, types.intp), emit


@intrinsic
def transpose(typingctx: Any, V: Any, source: Any, source_row: Any, target: Any, target_row: Any) -> Any:
    """Copy a square block of lanes x lanes numbers, transposed in registers: log2(lanes) rounds of shuffles."""
    vector, lanes = V.vector, V.vector.lanes
    part = 16 // vector.itemsize  # processors shuffle within 16 bytes sooner than across

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        def pairs(rows: list[Any], apart: int, low: list[int], high: list[int]) -> list[tuple[Any, Any]]:
            masks = [ir.Constant(ir.VectorType(I32, lanes), mask) for mask in (low, high)]
            first = [i for i in range(lanes) if i & apart == 0]
            return [tuple(builder.shuffle_vector(rows[i], rows[i + apart], mask) for mask in masks) for i in first]

        _, source, source_row, target, target_row = args
        rows = [
            emit_load(builder, builder.add(source, builder.mul(source_row, source_row.type(i))), vector) for i in range(lanes)
        ]
        half = lanes // 2
        while half >= part:  # swap the off-diagonal quarters of ever smaller square blocks
            low = [i if i & half == 0 else i - half + lanes for i in range(lanes)]
            high = [i + half if i & half == 0 else i + lanes for i in range(lanes)]
            first = [i for i in range(lanes) if i & half == 0]
            for i, (a, b) in zip(first, pairs(rows, half, low, high), strict=True):
                rows[i], rows[i + half] = a, b
            half //= 2
        unit = 1
        while unit < part:  # in each part of 16 bytes, interleave its halves, by ever more numbers at a time
            low = [i - i % part + i % part // (2 * unit) * unit + i % unit + (lanes if i & unit else 0) for i in range(lanes)]
            high = [i + part // 2 for i in low]
            rows = [row for pair in pairs(rows, unit, low, high) for row in pair]
            unit *= 2
        for i, row in enumerate(rows):
            emit_store(builder, row, builder.add(target, builder.mul(target_row, target_row.type(i))), vector)
        return context.get_dummy_value()

    return types.void(V, types.intp, types.intp, types.intp, types.intp), emit
