// db = sum_n dZ, in chunks of CHUNK: a block sums COLUMNS columns from `first` on.
//
// A warp takes every WARPS-th chunk, a lane its column; then the chunk sums are added in ascending order.
#pragma once
#include "functions.cuh"
#include "update.cuh"

constexpr int WARPS = THREADS / 32;

struct Sums {
    real chunks[WARPS][COLUMNS];
};

template <class Rule>
FUNCTION void column_sum(const COLUMN_SUM& p, int64 first, Sums& shared) {
    auto& chunks = shared.chunks;
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    const int64 o = first + lane, offset = o * sizeof(real);
    const bool mine = o < p.columns;
    real total = 0;
    for (int64 round = 0; round < p.rows; round += WARPS * CHUNK) {
        const int64 start = round + warp * CHUNK, end = start + CHUNK < p.rows ? start + CHUNK : p.rows;
        if (mine && start < end) {
            const char* number = (const char*)p.dZ + start * p.dZ_row + offset;
            real sum = *(const real*)number;
#pragma unroll 16
            for (int64 n = start + 1; n < end; n++) sum += *(const real*)(number += p.dZ_row);
            chunks[warp][lane] = sum;
        }
        __syncthreads();
        for (int w = 0; w < WARPS && round + w * CHUNK < p.rows; w++)
            if (warp == 0 && mine) total = round + w == 0 ? chunks[w][lane] : total + chunks[w][lane];
        __syncthreads();
    }
    const Rule rule(p.update);
    if (warp == 0 && mine) rule.template after<1>(offset, rule.template before<1>(offset, 1), {total}, 1);
}
