// The product of both passes:  dW = X^T dZ,  db = sum_n dZ.   X (n, i), dZ (n, o) give dW (i, o), db (o), or move W and b at once.
//
// The first blocks sum COLUMNS columns of dZ each, the others compute the tiles of dW.
#include "functions.cuh"
#include "product.cuh"
#include "update.cuh"

constexpr int COLUMNS = 32, WARPS = THREADS / 32;

struct Finish {
    typedef OPTION::Before<GN> Before;
    OPTION rule;
    int64 row;

    FUNCTION int64 offset(int64 i, int64 o) const { return i * row + o * (int64)sizeof(real); }
    FUNCTION Before before(int64 i, int64 o, int count) const { return rule.before<GN>(offset(i, o), count); }
    FUNCTION void after(int64 i, int64 o, const Before& old, const Results& g, int count) const {
        rule.after<GN>(offset(i, o), old, g, count);
    }
};

// A warp takes every WARPS-th chunk of CHUNK examples, a lane its column; then the chunk sums are added in ascending order.
FUNCTION void column_sum(const COLUMN_SUM& p, int64 first) {
    __shared__ real chunks[WARPS][COLUMNS];
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int64 o = first + lane;
    const bool mine = o < p.columns;
    real total = 0;
    for (int64 round = 0; round < p.rows; round += WARPS * CHUNK) {
        const int64 start = round + warp * CHUNK, end = start + CHUNK < p.rows ? start + CHUNK : p.rows;
        if (mine && start < end) {
            const char* number = (const char*)p.dZ + start * p.dZ_row + o * sizeof(real);
            real sum = *(const real*)number;
#pragma unroll 16
            for (int64 n = start + 1; n < end; n++) sum += *(const real*)(number += p.dZ_row);
            chunks[warp][lane] = sum;
        }
        __syncthreads();
        for (int w = 0; warp == 0 && w < WARPS && round + w * CHUNK < p.rows; w++)
            total = round + w == 0 ? chunks[w][lane] : total + chunks[w][lane];
        __syncthreads();
    }
    const OPTION rule(p.update);
    const int64 offset = o * sizeof(real);
    if (warp == 0 && mine) rule.after<1>(offset, rule.before<1>(offset, 1), {total}, 1);
}

extern "C" __global__ void __launch_bounds__(THREADS, 1) KERNEL(PRODUCT p, SPLIT s, UPDATE q, COLUMN_SUM b) {
    const int64 sums = (b.columns + COLUMNS - 1) / COLUMNS;
    if (blockIdx.x < sums) {
        if (blockIdx.y == 0) column_sum(b, (int64)blockIdx.x * COLUMNS);
        return;
    }
    Operand X = {(const char*)p.A, p.A_row, p.A_k}, dZ = {(const char*)p.B, sizeof(real), p.B_row};
    product<false, false>(X, dZ, p.M, p.N, p.K, s, blockIdx.x - sums, Finish{OPTION(q), q.row});
}
