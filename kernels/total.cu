// L = sum_n C^n, in chunks of CHUNK, to target[step].
#include "rows.cuh"

FUNCTION void run(const TOTAL& p, const STEP& s, const Block& block) {
    const real sum = ordered_sum((const real*)p.numbers, p.length, *(Shared*)block.shared);
    if (threadIdx.x == 0) *(real*)(p.target + *(const int64*)s.step * p.target_step) = sum;
}
