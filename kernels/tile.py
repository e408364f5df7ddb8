"""The accumulators of a register-blocked matrix product: a Numba type of rows x vectors Vectors, and what is done with it."""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic, register_model

from .vector import RegisterModel, Vector, emit_fma, emit_load, emit_opaque, emit_pointer, emit_splat, emit_store


class Tile(types.Type):
    def __init__(self, vector: Vector, rows: int, vectors: int) -> None:
        self.vector, self.rows, self.vectors = vector, rows, vectors
        self.llvm = ir.LiteralStructType([vector.llvm] * (rows * vectors))
        super().__init__(f"tile({vector.name} x {vectors} x {rows})")


register_model(Tile)(RegisterModel)


def _tile_addresses(builder: Any, address: Any, row_stride: Any, tile: Tile) -> list[Any]:
    size = tile.vector.lanes * tile.vector.itemsize
    rows = [builder.add(address, builder.mul(row_stride, row_stride.type(r))) for r in range(tile.rows)]
    return [builder.add(row, row.type(v * size)) for row in rows for v in range(tile.vectors)]


def _loaded(builder: Any, address: Any, row_stride: Any, tile: Tile) -> list[Any]:
    return [emit_load(builder, at, tile.vector) for at in _tile_addresses(builder, address, row_stride, tile)]


def _pack(builder: Any, values: list[Any], tile: Tile) -> Any:
    packed = ir.Constant(tile.llvm, ir.Undefined)
    for i, value in enumerate(values):
        packed = builder.insert_value(packed, value, i)
    return packed


def _unpack(builder: Any, packed: Any, tile: Tile) -> list[Any]:
    return [builder.extract_value(packed, i) for i in range(tile.rows * tile.vectors)]


@intrinsic(prefer_literal=True)
def tile_zeros(typingctx: Any, V: Any, rows: Any, vectors: Any) -> Any:
    """A tile of +0."""
    tile = Tile(V.vector, rows.literal_value, vectors.literal_value)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        zero = ir.Constant(tile.vector.llvm, [0.0] * tile.vector.lanes)
        return _pack(builder, [zero] * (tile.rows * tile.vectors), tile)

    return tile(V, rows, vectors), emit


@intrinsic(prefer_literal=True)
def tile_load(typingctx: Any, V: Any, rows: Any, vectors: Any, address: Any, row_stride: Any) -> Any:
    """The tile at the address, its rows row_stride bytes apart."""
    tile = Tile(V.vector, rows.literal_value, vectors.literal_value)

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        return _pack(builder, _loaded(builder, args[3], args[4], tile), tile)

    return tile(V, rows, vectors, types.intp, types.intp), emit


@intrinsic(prefer_literal=True)
def tile_fma(typingctx: Any, tile: Any, steps: Any, a: Any, a_row: Any, a_k: Any, b: Any, b_k: Any) -> Any:
    """tile[r, :] = fma(A[r, k], B[k, :], tile[r, :]) for k = 0 .. steps - 1.

    A holds numbers at a + r a_row + k a_k, B rows of vectors at b + k b_k; steps is a constant.
    """
    vector = tile.vector
    size = vector.lanes * vector.itemsize

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        acc, (_, _, a, a_row, a_k, b, b_k) = _unpack(builder, args[0], tile), args
        for _ in range(steps.literal_value):
            right = [emit_load(builder, builder.add(b, b.type(v * size)), vector) for v in range(tile.vectors)]
            for r in range(tile.rows):
                address = builder.add(a, builder.mul(a_row, a_row.type(r)))
                left = emit_splat(builder, builder.load(emit_pointer(builder, address, vector.element)), vector)
                for v in range(tile.vectors):
                    i = r * tile.vectors + v
                    acc[i] = emit_fma(builder, left, right[v], acc[i], vector)
            a, b = (emit_opaque(builder, builder.add(start, step)) for start, step in ((a, a_k), (b, b_k)))
        return _pack(builder, acc, tile)

    return tile(tile, steps, *(types.intp,) * 5), emit


@intrinsic
def tile_at(typingctx: Any, tile: Any, index: Any) -> Any:
    """One vector of a tile; they are numbered row by row.  In a loop that is unrolled it does not leave the registers."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        values = _unpack(builder, args[0], tile)
        place = cgutils.alloca_once(builder, ir.ArrayType(tile.vector.llvm, len(values)))
        zero = ir.Constant(ir.IntType(64), 0)
        for i, value in enumerate(values):
            builder.store(value, builder.gep(place, [zero, ir.Constant(ir.IntType(64), i)]))
        return builder.load(builder.gep(place, [zero, args[1]]))

    return tile.vector(tile, types.intp), emit


@intrinsic
def tile_store(typingctx: Any, address: Any, row_stride: Any, tile: Any) -> Any:
    """Write the tile, its rows row_stride bytes apart."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        addresses = _tile_addresses(builder, args[0], args[1], tile)
        for address, value in zip(addresses, _unpack(builder, args[2], tile), strict=True):
            emit_store(builder, value, address, tile.vector)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, tile), emit


@intrinsic
def tile_add(typingctx: Any, address: Any, row_stride: Any, tile: Any) -> Any:
    """Memory plus the tile, as a tile."""

    def emit(context: Any, builder: Any, sig: Any, args: Any) -> Any:
        pairs = zip(_loaded(builder, args[0], args[1], tile), _unpack(builder, args[2], tile), strict=True)
        return _pack(builder, [builder.fadd(there, value) for there, value in pairs], tile)

    return tile(types.intp, types.intp, tile), emit
