"""Products on tensor cores: cuBLASLt through the low-level bindings of nvmath-python.

A row-major array is, seen by the column-major cuBLASLt, its transpose.  So C = A B is asked for as C^T = B^T A^T: the first
operand is our B, the second our A, and the bias, one number a column of C, is one a row for cuBLASLt, as its epilogue wants it.
It has not run on a GPU yet.
"""

from __future__ import annotations

import weakref
from typing import Any

import numpy as np

from .backend import Array, BackendUnavailable

WORKSPACE = 32 << 20  # bytes that an algorithm may use, of which there is one for all products: they run one after another
_REAL, _TRANSPOSED = 0, 1  # CUDA_R_32F, CUBLAS_OP_T


def bindings() -> tuple[Any, Any]:
    """nvmath's modules cublas and cublasLt.  BackendUnavailable: they, or the library itself, are not installed."""
    try:
        from nvmath.bindings import cublas, cublasLt

        cublasLt.get_version()
    except Exception as error:  # nvmath has kinds of its own for a library that it does not find
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise BackendUnavailable(
            f"products on tensor cores need nvmath-python and cuBLAS ({reason}); "
            "python -m pip install 'bpgpu[fast13]' (or 'bpgpu[fast12]' for CUDA 12)"
        ) from error
    return cublas, cublasLt


class Description:
    """What cuBLASLt is told of a product; needs no GPU."""

    def __init__(
        self, precision: str, A: Array, B: Array, C: Array, A_transposed: bool, B_transposed: bool, bias: int, relu: bool,
        alignments: tuple[int, int, int],
    ) -> None:  # fmt: skip
        cublas, lt = bindings()
        kinds = cublas.ComputeType
        compute = kinds.COMPUTE_32F_FAST_16BF if precision == "bf16" else kinds.COMPUTE_32F_FAST_TF32
        self.operation = lt.matmul_desc_create(compute, _REAL)
        self.layouts = [lt.matrix_layout_create(_REAL, a.shape[1], a.shape[0], a.shape[1]) for a in (B, A, C)]
        self.preference = lt.matmul_preference_create()
        weakref.finalize(self, _destroy, lt, self.operation, self.layouts, self.preference)
        what, how = lt.MatmulDescAttribute, lt.MatmulPreferenceAttribute
        settings = {what.TRANSA: _TRANSPOSED * B_transposed, what.TRANSB: _TRANSPOSED * A_transposed}
        if bias:
            settings |= {what.EPILOGUE: lt.Epilogue.RELU_BIAS if relu else lt.Epilogue.BIAS, what.BIAS_POINTER: bias}
        for attribute, value in settings.items():
            number = np.array([value], lt.get_matmul_desc_attribute_dtype(attribute))
            lt.matmul_desc_set_attribute(self.operation, attribute, number.ctypes.data, number.nbytes)
        A_bytes, B_bytes, C_bytes = alignments
        limits = {
            how.MAX_WORKSPACE_BYTES: WORKSPACE, how.MIN_ALIGNMENT_A_BYTES: B_bytes, how.MIN_ALIGNMENT_B_BYTES: A_bytes,
            how.MIN_ALIGNMENT_C_BYTES: C_bytes, how.MIN_ALIGNMENT_D_BYTES: C_bytes,
        }  # fmt: skip
        for attribute, value in limits.items():
            number = np.array([value], lt.get_matmul_preference_attribute_dtype(attribute))
            lt.matmul_preference_set_attribute(self.preference, attribute, number.ctypes.data, number.nbytes)


def _destroy(lt: Any, operation: int, layouts: list[int], preference: int) -> None:
    lt.matmul_desc_destroy(operation)
    for layout in layouts:
        lt.matrix_layout_destroy(layout)
    lt.matmul_preference_destroy(preference)


def alignment(address: int) -> int:
    """Bytes: the largest power of two, up to 256, that divides an address."""
    return min(256, address & -address)


class CuBLASLt:
    """cuBLASLt on one GPU: plans products, which are then run on the current stream, in a capture too."""

    def __init__(self, device: Any, precision: str) -> None:
        _, self._lt = bindings()
        self._device, self._precision = device, precision
        self._handle = self._lt.create()
        self._workspace = device.empty((WORKSPACE,), np.uint8)
        self._loaded: set[bytes] = set()  # algorithms that have run
        self._scalars = np.array([1, 0], np.float32)  # for alpha and beta of C = alpha A B + beta C

    def plan(
        self, A: Array, B: Array, C: Array, *, A_transposed: bool, B_transposed: bool, add: bool, bias: Array | None, relu: bool
    ) -> Product | None:
        """None: there is no algorithm for such a product."""
        address = self._device.address
        alignments = alignment(address(A)), alignment(address(B)), alignment(address(C))
        bias_address = 0 if bias is None else address(bias)
        described = Description(self._precision, A, B, C, A_transposed, B_transposed, bias_address, relu, alignments)
        found, count = np.zeros(1, self._lt.matmul_heuristic_result_dtype), np.zeros(1, np.int32)
        first, second, result = described.layouts
        try:
            self._lt.matmul_algo_get_heuristic(
                self._handle, described.operation, first, second, result, result, described.preference,
                1, found.ctypes.data, count.ctypes.data,
            )  # fmt: skip
        except self._lt.cuBLASLtError as error:
            if "NOT_SUPPORTED" in str(error):
                return None
            raise
        if not count[0] or found["state"][0] != 0:
            return None
        if (algorithm := found["algo"].tobytes()) not in self._loaded:  # its first run loads it: not inside of a capture
            result = self._device.empty(C.shape, C.dtype)
            self.run(described, found.ctypes.data, (address(A), address(B), address(result)), False)
            self._loaded.add(algorithm)
        return Product(self, described, found, tuple(map(address, (A, B, C))), add)

    def run(self, described: Description, algorithm: int, addresses: tuple[int, ...], add: bool) -> None:
        (A, B, C), (first, second, result) = addresses, described.layouts
        one, zero = (self._scalars.ctypes.data + 4 * k for k in range(2))
        with self._device.here() as cupy:
            self._lt.matmul(
                self._handle, described.operation, one, B, first, A, second, one if add else zero, C, result, C, result,
                algorithm, self._device.address(self._workspace), WORKSPACE, cupy.cuda.get_current_stream().ptr,
            )  # fmt: skip


class Product:
    """A planned product; calling it computes C, or adds to it."""

    def __init__(
        self, products: CuBLASLt, described: Description, found: np.ndarray[Any, Any], addresses: tuple[int, ...], add: bool
    ) -> None:
        self._products, self._described, self._addresses, self._add = products, described, addresses, add
        self._found = found  # begins with the algorithm

    def __call__(self) -> None:
        self._products.run(self._described, self._found.ctypes.data, self._addresses, self._add)
