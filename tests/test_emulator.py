"""The emulated device: what its kernels compute, bit for bit, and what it does not let pass."""

from __future__ import annotations

import ctypes
import ctypes.util
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests import emulator
from tests.emulator import EmulatedDevice, available, sanitized_environment

pytestmark = pytest.mark.skipif(available() is not None, reason=str(available()))

Array = np.ndarray[Any, Any]
SANITIZE = "EMULATOR_SANITIZE" in os.environ  # the whole file once more: see test_all_of_this_under_the_sanitizers
without_sanitizers = pytest.mark.skipif(SANITIZE, reason="has nothing to do with the sanitizers, or starts them, or ends them")

KERNELS = r"""
struct Product { const void *a, *b; void* c; int M, K, N; };

template <class T> __device__ __forceinline__ T fused(T a, T b, T c);
template <> __device__ __forceinline__ float fused(float a, float b, float c) { return __fmaf_rn(a, b, c); }
template <> __device__ __forceinline__ double fused(double a, double b, double c) { return __fma_rn(a, b, c); }

template <class T> __device__ void product(Product p) {
    __shared__ T A[16][17], B[16][16];
    const T *a = static_cast<const T*>(p.a), *b = static_cast<const T*>(p.b);
    const int x = threadIdx.x, y = threadIdx.y, row = blockIdx.y * 16 + y, column = blockIdx.x * 16 + x;
    T sum = 0;
    for (int start = 0; start < p.K; start += 16) {
        A[y][x] = row < p.M && start + x < p.K ? a[row * p.K + start + x] : T(0);
        B[y][x] = column < p.N && start + y < p.K ? __ldg(b + (start + y) * p.N + column) : T(0);
        __syncthreads();
        for (int k = 0; k < min(16, p.K - start); ++k) sum = fused(A[y][k], B[k][x], sum);
        __syncthreads();
    }
    if (row < p.M && column < p.N) static_cast<T*>(p.c)[row * p.N + column] = sum;
}

extern "C" {

__global__ void __launch_bounds__(256) product_float32(Product p) { product<float>(p); }
__global__ void __launch_bounds__(256) product_float64(const Product p) { product<double>(p); }

__global__ void indices(int* out) {
    const int t = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
    const int b = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
    int* mine = out + 6 * (b * blockDim.x * blockDim.y * blockDim.z + t);
    mine[0] = threadIdx.x, mine[1] = threadIdx.y, mine[2] = threadIdx.z;
    mine[3] = blockIdx.x, mine[4] = blockIdx.y, mine[5] = blockIdx.z;
}

__global__ void nothing() {}

__global__ void reverse(const float* in, float* out, int n) {  // n of them in each block, of n + 2 threads
    extern __shared__ __align__(16) float values[];
    const int i = threadIdx.x;
    if (i < n) values[i] = in[blockIdx.x * n + i];
    __syncthreads();
    if (i < n) out[blockIdx.x * n + i] = values[n - 1 - i];
}

__global__ void race(int* out) {
    __shared__ int values[64];
    values[threadIdx.x] = threadIdx.x;
    out[threadIdx.x] = values[63 - threadIdx.x];  // without a barrier
}

__global__ void alignments(int* out) {
    __shared__ alignas(16) char a[5];
    alignas(32) __shared__ char b[5];
    __shared__ __align__(128) char c[5];
    __shared__ float4 d;
    extern __shared__ alignas(128) unsigned char e[];
    const void* of[] = {a, b, c, &d, e};
    const int alignment[] = {16, 32, 128, 16, 128};
    for (int k = 0; k < 5; ++k) out[k] = reinterpret_cast<unsigned long long>(of[k]) % alignment[k];
}

__global__ void blocks_in_turn(int* counter, int* out) {
    if (threadIdx.x == 0) out[blockIdx.x] = atomicAdd(counter, 1);
}

__global__ void shuffles(const double* in, double* out) {  // 8 numbers for each of 40 threads
    const int i = threadIdx.x;
    const double v = in[i];
    double* mine = out + 8 * i;
    mine[0] = __shfl_sync(0xffffffff, v, 5);
    mine[1] = __shfl_sync(0xffffffff, v, i + 1, 8);
    mine[2] = __shfl_up_sync(0xffffffff, v, 3);
    mine[3] = __shfl_up_sync(0xffffffff, v, 3, 8);
    mine[4] = __shfl_down_sync(0xffffffff, v, 3);
    mine[5] = __shfl_down_sync(0xffffffff, float(v), 3, 4);
    mine[6] = __shfl_xor_sync(0xffffffff, v, 6);
    __syncwarp();
    if (i % 32 < 5) mine[7] = __shfl_xor_sync(0x1f, int(v), 4);
}

__global__ void ballots(const int* in, unsigned* out) {
    const int i = threadIdx.x;
    out[2 * i] = __ballot_sync(0xffffffff, in[i] > 0);
    if (i % 2) out[2 * i + 1] = __ballot_sync(0xaaaaaaaa, in[i] > 0);
}

__global__ void sums_of_warps(const float* in, float* out) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    float v = in[i];
    for (int step = 16; step > 0; step /= 2) v = __fadd_rn(v, __shfl_down_sync(0xffffffff, v, step));
    if (threadIdx.x % 32 == 0) out[i / 32] = v;
}

struct Sums { int* i; unsigned* u; unsigned long long* l; float* f; double* d; unsigned* last; unsigned* most; };

__global__ void atomics(Sums s) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    atomicAdd(s.i + i % 3, i - 50);
    atomicAdd(s.u, ~0u);
    atomicAdd(s.l, 1ull << 40);
    atomicAdd(s.f, 1);
    atomicAdd(s.d, 0.5);
    const unsigned before = atomicExch(s.last, i + 1);
    unsigned seen = *s.most, wanted = before * 7919u % 1009u;
    while (wanted > seen) {
        const unsigned found = atomicCAS(s.most, seen, wanted);
        if (found == seen) break;
        seen = found;
    }
    __threadfence();
}

__global__ void across_the_grid(const int* in, int* partial, int* out) {
    __shared__ int total;  // of this block, kept over the barriers of the grid
    extern __shared__ int values[];
    const int t = threadIdx.x, n = blockDim.x;
    values[t] = in[blockIdx.x * n + t];
    __syncthreads();
    if (t == 0) {
        total = 0;
        for (int k = 0; k < n; ++k) total += values[k];
        partial[blockIdx.x] = total;
    }
    grid_sync();
    for (int round = 0; round < 3; ++round) {
        const int next = partial[(blockIdx.x + 1) % gridDim.x];
        grid_sync();
        if (t == 0) partial[blockIdx.x] = next;
        grid_sync();
    }
    out[blockIdx.x * n + t] = partial[blockIdx.x] * 1000 + total + values[n - 1 - t];
}

__global__ void grid_sync_of_some() { if (blockIdx.x > 0) grid_sync(); }

__global__ void copies(const float4* in, float* out, int waits) {  // 3 stages of 16, 8 and 4 bytes; out has 8 for each thread
    extern __shared__ __align__(16) unsigned char memory[];
    float4* wide = reinterpret_cast<float4*>(memory) + threadIdx.x;
    float2* half = reinterpret_cast<float2*>(memory + 16 * blockDim.x) + threadIdx.x;
    float* narrow = reinterpret_cast<float*>(memory + 24 * blockDim.x) + 2 * threadIdx.x;
    const float4* mine = in + threadIdx.x;
    copy_async_16(wide, mine);
    copy_async_commit();
    copy_async_8(half, mine);
    copy_async_commit();
    copy_async_4(narrow, &mine->z);
    copy_async_4(narrow + 1, &mine->w, 0);
    copy_async_commit();
    if (waits == 1) copy_async_wait<1>();
    if (waits == 3) copy_async_wait<0>();
    float* to = out + 8 * threadIdx.x;
    to[0] = wide->x, to[1] = wide->y, to[2] = wide->z, to[3] = wide->w;
    to[4] = half->x, to[5] = half->y, to[6] = narrow[0], to[7] = narrow[1];
}

__global__ void copy_to_global(float* memory) { copy_async_4(memory, memory + 1); }

__global__ void poisoned(float* statics, int* dynamics) {
    __shared__ float values[32];
    extern __shared__ int more[];
    statics[blockIdx.x * 32 + threadIdx.x] = values[threadIdx.x], values[threadIdx.x] = 1;
    dynamics[blockIdx.x * 32 + threadIdx.x] = more[threadIdx.x], more[threadIdx.x] = 1;
}

__global__ void past_the_end() {
    extern __shared__ int values[];
    values[blockDim.x] = 7;
}

#line 100 "barriers.cuh"
__global__ void some_return() {
    if (threadIdx.x < 5) return;
    __syncthreads();
}
__global__ void two_places() {
    if (threadIdx.x < 5) __syncthreads();
    else __syncthreads();
}
__global__ void warp_and_block() {
    if (threadIdx.x < 5) __syncwarp();
    else __syncthreads();
}
__global__ void not_in_mask() { __ballot_sync(0x1, 1); }
__global__ void asserts(int n) { assert(int(threadIdx.x) < n); }

__global__ void prints(int n) { printf("thread %d of %d\n", threadIdx.x, n); }

__global__ void arithmetic(const float* a, const float* b, float* out, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    float* mine = out + 8 * i;
    mine[0] = __fadd_rn(a[i], b[i]), mine[1] = __fsub_rn(a[i], b[i]), mine[2] = __fmul_rn(a[i], b[i]);
    mine[3] = __fdiv_rn(a[i], b[i]), mine[4] = __fsqrt_rn(a[i]), mine[5] = rintf(a[i]);
    mine[6] = __fmaf_rn(a[i], b[i], -(a[i] * b[i])), mine[7] = a[i] * b[i] + a[i];
}

__global__ void arithmetic_double(const double* a, const double* b, double* out, int n) {
    const int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i >= n) return;
    double* mine = out + 8 * i;
    mine[0] = __dadd_rn(a[i], b[i]), mine[1] = __dsub_rn(a[i], b[i]), mine[2] = __dmul_rn(a[i], b[i]);
    mine[3] = __ddiv_rn(a[i], b[i]), mine[4] = __dsqrt_rn(a[i]), mine[5] = rint(a[i]);
    mine[6] = fma(a[i], b[i], -(a[i] * b[i])), mine[7] = a[i] * b[i] + a[i];
}

__global__ void corners(int* out, float* extremes) {
    const float nan = __int_as_float(0x7fc00000), big = __uint_as_float(0x7f7fffff);
    const int values[] = {
        __float2int_rn(2.5f), __float2int_rn(-big), __float2int_rn(nan), __double2int_rn(3e9),
        __double2ll_rn(-1e30) == -9223372036854775807ll - 1, __float_as_int(-0.0f), int(__float_as_uint(1.0f)),
        __double_as_longlong(1.0) == 0x3ff0000000000000ll, __longlong_as_double(0x4000000000000000ll) == 2.0,
        __popc(0xf0f0u), __clz(1), __ffs(8), __ffs(0), int(__umulhi(0xffffffffu, 16u)),
        int(__umul64hi(1ull << 63, 6ull)), min(3, -4), int(max(3u, ~0u)), make_float4(1, 2, 3, 4).z == 3.0f,
        alignof(float4) == 16 && alignof(double2) == 16 && alignof(float2) == 8 && sizeof(uint3) == 12, warpSize,
    };
    for (int k = 0; k < int(sizeof values / sizeof *values); ++k) out[k] = values[k];
    extremes[0] = fmaxf(-0.0f, 0.0f), extremes[1] = fminf(0.0f, -0.0f);
    extremes[2] = fmaxf(nan, 1), extremes[3] = min(1.0f, nan);
}

}
"""
NAMES = """
    product_float32 product_float64 indices nothing reverse race alignments blocks_in_turn shuffles ballots sums_of_warps
    atomics across_the_grid grid_sync_of_some copies copy_to_global poisoned past_the_end some_return two_places warp_and_block
    not_in_mask asserts prints arithmetic arithmetic_double corners
""".split()


class Kernels:
    """A device with the kernels above; arrays as arguments are passed as their addresses."""

    def __init__(self, order: Any = "ascending") -> None:
        self.device = EmulatedDevice(order, sanitize=SANITIZE)
        self.kernels: Mapping[str, Any] = self.device.compile(KERNELS, NAMES)

    def __call__(self, name: str, grid: Any, block: Any, *arguments: Any, **how: Any) -> None:
        def whole(n: Any) -> Any:
            return n if isinstance(n, tuple) else (n, 1, 1)

        values = [np.uint64(self.device.address(a)) if isinstance(a, np.ndarray) and a.shape else a for a in arguments]
        self.device.launch(self.kernels[name], whole(grid), whole(block), values, **how)

    def empty(self, shape: Any, dtype: Any = "f4") -> Array:
        return self.device.empty(shape, dtype)

    def struct(self, *fields: Any) -> Array:
        """Of addresses and ints, as a C compiler lays them out."""
        values = [self.device.address(f) if isinstance(f, np.ndarray) else f for f in fields]
        kinds = ["u8" if isinstance(f, np.ndarray) else "i4" for f in fields]
        return np.array(tuple(values), np.dtype([(f"f{i}", kind) for i, kind in enumerate(kinds)], align=True))


@pytest.fixture(params=emulator.ORDERS)
def run(request: pytest.FixtureRequest) -> Kernels:
    return Kernels(request.param)


@pytest.fixture
def run_up() -> Kernels:
    return Kernels()


def random(seed: int, shape: Any, dtype: Any = "f4") -> Array:
    values: Array = np.random.default_rng(seed).standard_normal(shape)
    return values.astype(dtype)


def same(a: Array, b: Array) -> bool:
    """Bit for bit, except that any NaN is a NaN: its sign and payload are the processor's."""
    a, b = np.asarray(a), np.asarray(b)
    assert a.dtype == b.dtype and a.shape == b.shape
    if a.dtype.kind != "f":
        return bool((a == b).all())
    bits = np.dtype(f"u{a.itemsize}")
    return bool(((a.view(bits) == b.view(bits)) | (np.isnan(a) & np.isnan(b))).all())


def fma(dtype: Any) -> Callable[[Any, Any, Any], float]:
    double = np.dtype(dtype) == np.float64
    kind = ctypes.c_double if double else ctypes.c_float
    function = ctypes.CDLL(ctypes.util.find_library("m"))["fma" if double else "fmaf"]
    function.argtypes, function.restype = [kind] * 3, kind
    return function


# -- what kernels compute -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(1, 1, 1), (16, 16, 16), (33, 40, 19), (3, 70, 1)], ids=str)
def test_tiled_product(run: Kernels, shape: tuple[int, int, int], dtype: str) -> None:
    M, K, N = shape
    a, b, c = random(1, (M, K), dtype), random(2, (K, N), dtype), run.empty((M, N), dtype)
    run(f"product_{dtype}", (-(-N // 16), -(-M // 16), 1), (16, 16, 1), run.struct(a, b, c, M, K, N))
    expected = np.zeros_like(c)
    fused = fma(dtype)
    for m in range(M):
        for n in range(N):
            total = 0.0
            for k in range(K):
                total = fused(a[m, k], b[k, n], total)
            expected[m, n] = total
    assert same(c, expected)


def test_large_product(run: Kernels) -> None:
    """Exact in every order of summation, so that NumPy's is as good; and fast, which shows when it is not."""
    a, b = (np.random.default_rng(seed).integers(-9, 9, (128, 128)).astype("f4") for seed in (1, 2))
    c = run.empty((128, 128))
    run("product_float32", (8, 8, 1), (16, 16, 1), run.struct(a, b, c, 128, 128, 128))
    assert same(c, a @ b)


def test_indices(run: Kernels) -> None:
    grid, block = (3, 2, 4), (5, 3, 2)
    out = run.empty((24 * 30, 6), "i4")
    run("indices", grid, block, out)
    expected = np.array([(*t[::-1], *b[::-1]) for b in np.ndindex(grid[::-1]) for t in np.ndindex(block[::-1])], "i4")
    assert same(out, expected)


def test_no_arguments(run_up: Kernels) -> None:
    run_up("nothing", 1, 1)
    run_up("nothing", (1, 65535, 1), (1, 1, 64))


@pytest.mark.parametrize("n", [1, 31, 33, 1000])
def test_dynamic_shared_memory(run: Kernels, n: int) -> None:
    values, out = random(3, (3, n)), run.empty((3, n))
    run("reverse", 3, n + 2, values, out, np.int32(n), shared_bytes=4 * n)
    assert same(out, values[:, ::-1])


def test_alignment_of_shared_memory(run_up: Kernels) -> None:
    out = run_up.empty(5, "i4")
    run_up("alignments", 1, 1, out, shared_bytes=1)
    assert not out.any()


def test_shuffles(run: Kernels) -> None:
    values, out = random(4, 40, "f8"), run.empty((40, 8), "f8")
    run("shuffles", 1, 40, values, out)
    missing = np.float64(np.nan)
    for i in range(40):
        lane, warp = i % 32, i - i % 32
        first = warp + lane // 8 * 8

        def value(j: int) -> Any:
            return values[j] if j < 40 else missing  # a lane that is not there gives poison

        expected = [
            value(warp + 5),
            value(first + (i + 1) % 8),
            value(i - 3 if lane >= 3 else i),
            value(i - 3 if lane % 8 >= 3 else i),
            value(i + 3 if lane + 3 < 32 else i),
            np.float64(np.float32(value(i + 3 if lane % 4 == 0 else i))),
            value(warp + (lane ^ 6)),
        ]
        assert same(out[i, :7], np.array(expected)), i
    got = out[[*range(5), *range(32, 37)], 7].reshape(2, 5)
    whole = np.trunc(values)
    for row, start in zip(got, (0, 32), strict=True):
        assert row[0] == whole[start + 4] and row[4] == whole[start]
        assert (row[1:4] == -1).all()  # lanes 5, 6 and 7 are not in the mask
    assert np.isnan(out[5:32, 7]).all()


def test_ballots(run: Kernels) -> None:
    values, out = np.random.default_rng(5).integers(-1, 2, 70, "i4"), run.empty((70, 2), "u4")
    run("ballots", 1, 70, values, out)
    for i in range(70):
        lanes = range(i - i % 32, min(i - i % 32 + 32, 70))
        every = sum(1 << j % 32 for j in lanes if values[j] > 0)
        assert out[i, 0] == every
        assert out[i, 1] == (every & 0xAAAAAAAA if i % 2 else 2**32 - 1)


def test_sum_over_warps(run: Kernels) -> None:
    values, out = random(6, 5 * 96), run.empty(15)
    run("sums_of_warps", 5, 96, values, out)
    rest = values.reshape(15, 32)
    while rest.shape[1] > 1:
        half = rest.shape[1] // 2
        rest = rest[:, :half] + rest[:, half:]
    assert same(out, rest[:, 0])


def test_atomics(run: Kernels) -> None:
    dtypes = {"i": "i4", "u": "u4", "l": "u8", "f": "f4", "d": "f8", "last": "u4", "most": "u4"}
    sums = {name: np.zeros(3 if name == "i" else 1, dtype) for name, dtype in dtypes.items()}
    run("atomics", 7, 33, run.struct(*sums.values()))
    n = 7 * 33
    assert sums["i"].tolist() == [sum(i - 50 for i in range(k, n, 3)) for k in range(3)]
    assert sums["u"][0] == 2**32 - n and sums["l"][0] == n << 40 and sums["f"][0] == n and sums["d"][0] == n / 2
    last = int(sums["last"][0])
    assert 1 <= last <= n
    assert sums["most"][0] == max(i * 7919 % 1009 for i in range(n + 1) if i != last)


@pytest.mark.parametrize(("blocks", "threads"), [(1, 1), (5, 33), (13, 64)])
def test_grid_sync(run: Kernels, blocks: int, threads: int) -> None:
    values = np.random.default_rng(7).integers(0, 10, (blocks, threads), "i4")
    partial, out = run.empty(blocks, "i4"), run.empty((blocks, threads), "i4")
    run("across_the_grid", blocks, threads, values, partial, out, shared_bytes=4 * threads, cooperative=True)
    totals = values.sum(1, dtype="i4")
    assert same(out, np.roll(totals, -3)[:, None] * np.int32(1000) + totals[:, None] + values[:, ::-1])


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_arithmetic(run_up: Kernels, dtype: str) -> None:
    """Every operator rounds once: no contraction, no flush to zero, IEEE division and square root."""
    info = np.finfo(dtype)
    special = [0.0, -0.0, 1.0, -1.5, np.inf, -np.inf, np.nan, info.max, info.tiny, info.smallest_subnormal, -info.tiny / 3]
    values = np.concatenate([np.array(special, dtype), random(8, 50, dtype), random(9, 50, dtype) * info.tiny])
    a, b = (np.ascontiguousarray(v).reshape(-1) for v in np.meshgrid(values, values))
    out = run_up.empty((a.size, 8), dtype)
    run_up("arithmetic" if dtype == "f4" else "arithmetic_double", -(-a.size // 128), 128, a, b, out, np.int32(a.size))
    with np.errstate(all="ignore"):
        expected = [a + b, a - b, a * b, a / b, np.sqrt(a), np.rint(a), None, a * b + a]
        fused, negative = fma(dtype), -(a * b)
    expected[6] = np.array([fused(*abc) for abc in zip(a, b, negative, strict=True)], dtype)
    for column, numbers in enumerate(expected):
        assert same(np.ascontiguousarray(out[:, column]), numbers), column
    assert (np.abs(out[np.isfinite(out)]) < info.tiny).any() and np.count_nonzero(expected[6]) > 100


def test_corners(run_up: Kernels) -> None:
    out, extremes = run_up.empty(20, "i4"), run_up.empty(4)
    run_up("corners", 1, 1, out, extremes)
    lowest = -(2**31)
    expected = [2, lowest, 0, 2**31 - 1, 1, lowest, 0x3F800000, 1, 1, 8, 31, 4, 0, 15, 3, -4, -1, 1, 1, 32]
    assert out.tolist() == expected
    assert same(extremes, np.array([0.0, -0.0, 1.0, 1.0], "f4"))


def test_printf(run_up: Kernels, capfd: pytest.CaptureFixture[str]) -> None:
    run_up("prints", 1, 2, np.int32(2))
    run_up.device.synchronize()
    assert capfd.readouterr().out == "thread 0 of 2\nthread 1 of 2\n"


# -- what it brings to light ----------------------------------------------------------------------------------------------


def test_asynchronous_copies_arrive_when_waited_for(run: Kernels) -> None:
    values = random(10, (40, 4))
    arrived = np.hstack([values, values[:, :3], np.zeros((40, 1), "f4")])
    for waits, there in [(3, 8), (1, 6), (0, 0)]:
        out = run.empty((40, 8))
        run("copies", 1, 40, values, out, np.int32(waits), shared_bytes=40 * 32)
        assert same(out[:, :there], arrived[:, :there]) and np.isnan(out[:, there:]).all(), waits
    with pytest.raises(RuntimeError, match=r"kernel 'copy_to_global'.* copy_async_4 not to shared memory in kernels\.cu:\d+"):
        run("copy_to_global", 1, 1, values)


def test_a_race_depends_on_the_order() -> None:
    results = []
    for order in emulator.ORDERS:
        run = Kernels(order)
        out = run.empty(64, "i4")
        run("race", 1, 64, out)
        results.append(out.tolist())
    right = list(range(63, -1, -1))
    assert right not in results and len({tuple(r) for r in results}) == 3
    assert results[0][:32] == [-1] * 32 and results[0][32:] == right[32:]


def test_order_of_blocks() -> None:
    got = {}
    for order in emulator.ORDERS:
        run = Kernels(order)
        out = run.empty(50, "i4")
        run("blocks_in_turn", 50, 3, np.zeros(1, "i4"), out)
        got[order] = out.tolist()
    assert got["ascending"] == list(range(50)) == got["descending"][::-1]
    assert sorted(got["random"]) == list(range(50)) and got["random"] not in (got["ascending"], got["descending"])


def test_random_order_is_seeded() -> None:
    def turns(seed: int) -> list[list[int]]:
        run = Kernels()
        run.device = EmulatedDevice("random", sanitize=SANITIZE, seed=seed)
        outs = [run.empty(50, "i4") for _ in range(2)]
        for out in outs:
            run("blocks_in_turn", 50, 1, np.zeros(1, "i4"), out)
        return [out.tolist() for out in outs]

    first, second = turns(1)
    assert [first, second] == turns(1) != turns(2) and first != second


def test_unwritten_memory_is_poison(run: Kernels) -> None:
    assert np.isnan(run.empty((2, 3))).all() and np.isnan(run.empty(2, "f8")).all()
    assert run.empty(1, "i4")[0] == -(2**31) and run.empty(1, "u8")[0] == 2**64 - 1 and run.empty(1, "?")[0]
    statics, dynamics = run.empty(96), np.zeros(96, "i4")
    run("poisoned", 3, 32, statics, dynamics, shared_bytes=128)
    run("poisoned", 3, 32, statics, dynamics, shared_bytes=128, cooperative=True)
    assert np.isnan(statics).all() and (dynamics == -1).all()


@without_sanitizers
def test_writing_past_dynamic_shared_memory(run_up: Kernels) -> None:
    run_up("past_the_end", 1, 32, shared_bytes=33 * 4)
    with pytest.raises(RuntimeError, match=r"kernel 'past_the_end', block \(0, 0, 0\): writes past its 128 bytes"):
        run_up("past_the_end", 1, 32, shared_bytes=32 * 4)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("some_return", r"of 40 threads, 5 returned, 35 at __syncthreads\(\) in barriers\.cuh:\d+$"),
        (
            "two_places",
            r"of 40 threads, 5 at __syncthreads\(\) in barriers\.cuh:\d+, 35 at __syncthreads\(\) in barriers\.cuh:\d+$",
        ),
        (
            "warp_and_block",
            r"of 40 threads, 5 at __syncwarp\(\) in barriers\.cuh:\d+ with mask 0xffffffff, 35 at __syncthreads",
        ),
    ],
)
def test_divergent_barriers(run: Kernels, name: str, message: str) -> None:
    with pytest.raises(RuntimeError, match=rf"kernel '{name}', block \(0, [01], 0\): divergent barrier: " + message):
        run(name, (1, 2, 1), 40)
    test_dynamic_shared_memory(run, 100)  # the device is as good as new


def test_divergent_grid_sync(run: Kernels) -> None:
    with pytest.raises(RuntimeError, match=r"kernel 'grid_sync_of_some'.* 1 of 3 blocks have returned"):
        run("grid_sync_of_some", 3, 8, cooperative=True)
    with pytest.raises(RuntimeError, match=r"kernel 'grid_sync_of_some', .* a launch that is not cooperative"):
        run("grid_sync_of_some", 3, 8)


def test_failures_in_a_thread(run_up: Kernels) -> None:
    with pytest.raises(RuntimeError, match=r"kernel 'not_in_mask', .* lane 1 is not in the mask 0x1"):
        run_up("not_in_mask", 1, 2)
    run_up("asserts", 2, (2, 2, 1), np.int32(2))
    with pytest.raises(RuntimeError, match=r"block \(0, 0, 0\), thread \(1, 0, 0\): assertion `int\(threadIdx\.x\) < n"):
        run_up("asserts", 2, (2, 2, 1), np.int32(1))


def test_arguments_are_checked(run_up: Kernels) -> None:
    out = run_up.empty(8)
    for bad, message in [
        ((out,), "'reverse' has 3 parameters, got 1 arguments"),
        ((out, out, np.int64(1)), "'reverse': parameter 2 has 4 bytes, the argument 8"),
    ]:
        with pytest.raises(RuntimeError, match=message):
            run_up("reverse", 1, 1, *bad)
    with pytest.raises(TypeError, match="argument 2 is 1, expected a NumPy scalar"):
        run_up("reverse", 1, 1, out, out, 1)
    for grid, block, shared in [((0, 1, 1), (1, 1, 1), 0), ((1, 65536, 1), (1, 1, 1), 0), ((1, 1, 1), (64, 32, 1), 0)]:
        with pytest.raises(ValueError, match="no device runs 'nothing' with grid"):
            run_up("nothing", grid, block, shared_bytes=shared)
    with pytest.raises(ValueError, match="no device runs 'nothing' with 300000 bytes"):
        run_up("nothing", 1, 1, shared_bytes=300_000)


# -- compilation ----------------------------------------------------------------------------------------------------------


@without_sanitizers
def test_compile_errors() -> None:
    device = EmulatedDevice()
    with pytest.raises(RuntimeError, match=r"(?s)^g\+\+ does not compile .*kernels\.cu:2:\d+: error: 'y' was not declared"):
        device.compile('extern "C" __global__ void f(int* x) {\n  x[0] = y;\n}', ["f"])
    with pytest.raises(RuntimeError, match="'g' was not declared"):
        device.compile('extern "C" __global__ void f() {}', ["g"])
    with pytest.raises(RuntimeError, match=r"and \d+ more lines") as caught:
        device.compile("\n".join(f"int f{i} = missing;" for i in range(50)), [])
    assert len(str(caught.value).splitlines()) < 25
    with pytest.raises(RuntimeError, match=r"kernels\.cu:1:1: note: in expansion of macro 'DYNAMIC_SHARED'"):
        device.compile("extern __shared__ float values[];", [])  # outside of a function it would not work
    with pytest.raises(RuntimeError, match="scalars and plain structs"):
        device.compile('struct S { S(const S&); }; extern "C" __global__ void f(S s) {}', ["f"])


def test_libraries_share_nothing() -> None:
    """Templates of the same name in two libraries would be one, with one piece of shared memory, to the dynamic linker."""
    source = """
        template <class T> __device__ void f(T* out) {
            __shared__ T values[SIZE];
            values[threadIdx.x] = threadIdx.x;
            __syncthreads();
            out[threadIdx.x] = values[SIZE - 1 - threadIdx.x];
        }
        extern "C" __global__ void g(int* out) { f<int>(out); }
    """
    device = EmulatedDevice("descending", sanitize=SANITIZE)
    for size in (3, 500):
        kernel = device.compile(source.replace("SIZE", str(size)), ["g"])["g"]
        out = device.empty(size, "i4")
        device.launch(kernel, (1, 1, 1), (size, 1, 1), [np.uint64(device.address(out))])
        assert out.tolist() == list(range(size - 1, -1, -1))


@without_sanitizers
def test_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulator, "_folder", lambda: tmp_path)
    source = 'extern "C" __global__ void f() {}'
    for _ in range(2):
        EmulatedDevice().compile(source, ["f"])
        assert len(list(tmp_path.iterdir())) == 2  # the kernels' library and the scheduler's
    EmulatedDevice().compile(source + "  // changed", ["f"])
    assert len(list(tmp_path.iterdir())) == 3


def test_fibers_without_assembly(monkeypatch: pytest.MonkeyPatch) -> None:
    """The switch that other processors than x86-64 use."""
    flags = [*emulator._flags(), "-DEMULATED_UCONTEXT"]
    monkeypatch.setattr(emulator, "_flags", lambda: flags)
    run = Kernels("random")
    test_dynamic_shared_memory(run, 33)
    test_shuffles(run)
    test_grid_sync(run, 5, 33)
    with pytest.raises(RuntimeError, match="divergent barrier"):
        run("some_return", 1, 40)
    test_dynamic_shared_memory(run, 33)


# -- arrays and recording -------------------------------------------------------------------------------------------------


def test_arrays() -> None:
    device = EmulatedDevice()
    source = np.arange(6.0).reshape(2, 3).T
    array = device.asarray(source)
    copied, back = device.copy(array), device.to_numpy(array)
    assert array.flags.c_contiguous and same(array, source) and device.address(array) == array.ctypes.data
    array[0] = -1
    assert same(copied, source) and same(back, source) and source[0, 0] == 0
    device.write(array, back)
    assert same(array, source)
    for bad in (back[:1], back.astype("f4")):
        with pytest.raises(ValueError, match="write float"):
            device.write(array, bad)


def test_recording(run: Kernels) -> None:
    device, values = run.device, random(11, (3, 8))
    once, twice, n = run.empty((3, 8)), run.empty((3, 8)), np.array(8, "i4")
    with device.capture() as graph:
        run("reverse", 3, 8, values, once, n, shared_bytes=32)
        run("reverse", 3, 8, once, twice, n, shared_bytes=32)
        n[()] = 4  # arguments are those of the moment of the launch
        for forbidden in (
            *(device.synchronize, graph.launch, lambda: device.to_numpy(once), lambda: device.copy(once)),
            *(lambda: device.asarray(once), lambda: device.write(once, values), lambda: device.capture().__enter__()),
        ):
            with pytest.raises(RuntimeError, match="while recording"):
                forbidden()
    assert np.isnan(once).all() and np.isnan(twice).all()
    for _ in range(2):
        graph.launch()
        assert same(once, values[:, ::-1]) and same(twice, values)
        values += 1
    with pytest.raises(ZeroDivisionError), device.capture():
        raise ZeroDivisionError
    run("reverse", 3, 8, values, once, np.int32(8), shared_bytes=32)  # run at once again
    assert same(once, values[:, ::-1])


# -- sanitizers -----------------------------------------------------------------------------------------------------------


def sanitized(*command: str) -> subprocess.CompletedProcess[str]:
    environment = sanitized_environment()
    if environment is None:
        pytest.skip("g++ has no AddressSanitizer here")
    environment = {
        **environment,
        "EMULATOR_SANITIZE": "1",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "PYTHONPATH": str(Path(__file__).parents[1]),
    }
    return subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=False)


BAD = """
struct alignas(16) Vector { float x[4]; };
extern "C" {
__global__ void in_bounds(float* x) { extern __shared__ float s[]; s[threadIdx.x] = x[threadIdx.x]; }
__global__ void global_read(float* x) { x[0] = x[threadIdx.x + 1]; }
__global__ void global_write(float* x) { x[int(threadIdx.x) - 1] = 0; }
__global__ void dynamic_shared(float* x) { extern __shared__ float s[]; s[threadIdx.x + 1] = x[0]; }
__global__ void static_shared(float* x) { __shared__ float s[7]; s[threadIdx.x] = x[0]; x[1] = s[threadIdx.x]; }
__global__ void unaligned(float* x) { x[0] = reinterpret_cast<Vector*>(x + 1)->x[2]; }
__global__ void conversion(float* x) { x[0] = int(x[0] * 1e20f); }
__global__ void asynchronous(float* x) {
    extern __shared__ float s[];
    copy_async_4(s + threadIdx.x, x + threadIdx.x + 1);
    copy_async_commit();
    copy_async_wait<0>();
    __syncthreads();
}
}
"""
BAD_NAMES = {
    "in_bounds": "",
    "global_read": "heap-buffer-overflow",
    "global_write": "heap-buffer-overflow",
    "dynamic_shared": "use-after-poison",
    "static_shared": "index 7 out of bounds",
    "unaligned": "misaligned address",
    "conversion": "outside the range of representable values",
    "asynchronous": "heap-buffer-overflow",
}


@without_sanitizers
def test_sanitizers_catch() -> None:
    program = f"""if True:
        import os, sys, numpy as np
        from tests.emulator import EmulatedDevice
        device = EmulatedDevice(sanitize=True)
        names = {list(BAD_NAMES)}
        kernels = device.compile({BAD!r}, names)
        for name in names:
            print(f"<{{name}}>", end="", file=sys.stderr, flush=True)
            if (child := os.fork()) == 0:
                x = device.asarray(np.ones(8, "f4"))
                device.launch(kernels[name], (1, 1, 1), (8, 1, 1), [np.uint64(device.address(x))], shared_bytes=32)
                os._exit(0)
            status = os.waitpid(child, 0)[1]
            print("<end>", file=sys.stderr, flush=True)
            print(name, os.waitstatus_to_exitcode(status), flush=True)
    """
    done = sanitized("-c", program)
    assert done.returncode == 0, done.stderr
    assert dict(line.split() for line in done.stdout.splitlines()) == {n: "01"[bool(m)] for n, m in BAD_NAMES.items()}
    for name, message in BAD_NAMES.items():
        said = done.stderr.split(f"<{name}>")[1].split("<end>")[0]
        assert message in said and bool(message) == ("kernels.cu:" in said), (name, said)


@without_sanitizers
def test_all_of_this_under_the_sanitizers() -> None:
    """That fibers and shared memory are told to the sanitizers rightly: they find nothing where there is nothing."""
    pytest_ = ["-m", "pytest", "-q", "--noconftest", "-p", "no:cacheprovider", "-o", "addopts=", __file__]
    done = sanitized(*pytest_)
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    assert " passed" in done.stdout


@without_sanitizers
def test_sanitizers_need_their_environment() -> None:
    with pytest.raises(RuntimeError, match="sanitized_environment"):
        EmulatedDevice(sanitize=True)
