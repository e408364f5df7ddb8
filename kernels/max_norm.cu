// Columns of W no longer than a limit: clip.py in CUDA C++, one thread a column.
#include "functions.cuh"

FUNCTION void run(const MAX_NORM& p, const Block& block) {
    const int64 o = block.x * THREADS + threadIdx.x;
    if (o >= p.columns) return;
    char* column = (char*)p.W + o * sizeof(real);
    real total = 0;
    for (int64 start = 0; start < p.rows; start += CHUNK) {
        const int64 end = start + CHUNK < p.rows ? start + CHUNK : p.rows;
        real acc = 0;
        for (int64 i = start; i < end; i++) {
            const real w = *(const real*)(column + i * p.W_row);
            acc = fused(w, w, acc);
        }
        total = start == 0 ? acc : total + acc;
    }
    const real limit = *(const real*)p.limit, length = root(total);
    const real scale = length > limit ? limit / length : (real)1;
    for (int64 i = 0; i < p.rows; i++) *(real*)(column + i * p.W_row) *= scale;
}
