// db = sum_n dZ, in chunks of CHUNK, where dense_gradient.cu does not run: one thread a column.
#include "functions.cuh"
#include "update.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) KERNEL(COLUMN_SUM p) {
    const int64 o = (int64)blockIdx.x * THREADS + threadIdx.x;
    if (o >= p.columns) return;
    const char* column = (const char*)p.dZ + o * sizeof(real);
    real total = 0;
    for (int64 start = 0; start < p.rows; start += CHUNK) {
        const int64 end = start + CHUNK < p.rows ? start + CHUNK : p.rows;
        real chunk = *(const real*)(column + start * p.dZ_row);
        for (int64 n = start + 1; n < end; n++) chunk += *(const real*)(column + n * p.dZ_row);
        total = start == 0 ? chunk : total + chunk;
    }
    const OPTION rule(p.update);
    const int64 offset = o * sizeof(real);
    rule.after<1>(offset, rule.before<1>(offset, 1), {total}, 1);
}
