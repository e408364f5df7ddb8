// L = sum_n C^n, in chunks of CHUNK, to target[step].
#include "rows.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) KERNEL(TOTAL p, STEP s) {
    const real sum = ordered_sum((const real*)p.numbers, p.length);
    if (threadIdx.x == 0) *(real*)(p.target + *(const int64*)s.step * p.target_step) = sum;
}
