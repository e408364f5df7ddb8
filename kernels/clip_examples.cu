// delta_n = delta_n min(1, limit scale_n / sqrt(norms_n)): a block of THREADS an example.
#include "functions.cuh"

FUNCTION void run(const CLIP_EXAMPLES& p, const Block& block) {
    const int64 n = block.x;
    const real norm = root(((const real*)p.norms)[n]);
    const real limit = *(const real*)p.limit * *(const real*)(p.scale + n * p.scale_step);
    const real factor = select(norm > limit, limit / norm, 1);
    real* row = (real*)(p.dZ + n * p.dZ_row);
    for (int64 o = threadIdx.x; o < p.columns; o += THREADS) row[o] = row[o] * factor;
}
