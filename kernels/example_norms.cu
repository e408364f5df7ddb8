// norms[n] = |x_n|^2 |delta_n|^2 + |delta_n|^2, added to what is there if `add`: a thread an example.
#include "functions.cuh"

// In chunks of CHUNK, one fma a term, ascending.
FUNCTION real squares(const real* row, int64 columns) {
    real total = 0;
    for (int64 start = 0; start < columns; start += CHUNK) {
        const int64 end = start + CHUNK < columns ? start + CHUNK : columns;
        real chunk = 0;
        for (int64 k = start; k < end; k++) chunk = fused(row[k], row[k], chunk);
        total += chunk;
    }
    return total;
}

extern "C" __global__ void __launch_bounds__(THREADS) KERNEL(NORMS p) {
    const int64 n = (int64)blockIdx.x * THREADS + threadIdx.x;
    if (n >= p.rows) return;
    real x = squares((const real*)(p.X + n * p.X_row), p.X_columns);
    real d = squares((const real*)(p.dZ + n * p.dZ_row), p.dZ_columns);
    real norm = fused(x, d, d);
    real* norms = (real*)p.norms;
    norms[n] = p.add ? norms[n] + norm : norm;
}
