// norms[n] = |x_n|^2 |delta_n|^2 + |delta_n|^2, added to what is there if `add`: a block of THREADS an example.
#include "rows.cuh"

// In chunks of CHUNK, one fma a term, ascending: a thread a chunk, then every thread adds the chunk sums in ascending order.
FUNCTION real squares(const real* row, int64 columns, Shared& sums) {
    const int64 chunks = (columns + CHUNK - 1) / CHUNK;
    real total = 0;
    for (int64 first = 0; first < chunks; first += THREADS) {
        const int64 start = (first + threadIdx.x) * CHUNK, end = start + CHUNK < columns ? start + CHUNK : columns;
        real chunk = 0;
        for (int64 k = start; k < end; k++) chunk = fused(row[k], row[k], chunk);
        __syncthreads();  // everybody has the sums of before
        sums.of[threadIdx.x] = chunk;
        __syncthreads();
        for (int64 c = 0; c < THREADS && first + c < chunks; c++) total += sums.of[c];
    }
    return total;
}

FUNCTION void run(const EXAMPLE_NORMS& p, const Block& block) {
    Shared& sums = *(Shared*)block.shared;
    const int64 n = block.x;
    real x = squares((const real*)(p.X + n * p.X_row), p.X_columns, sums);
    real d = squares((const real*)(p.dZ + n * p.dZ_row), p.dZ_columns, sums);
    real norm = fused(x, d, d);
    real* norms = (real*)p.norms;
    if (threadIdx.x == 0) norms[n] = p.add ? norms[n] + norm : norm;
}
