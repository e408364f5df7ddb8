// Gradient descent over a flat array of parameters, in place.
#include "functions.cuh"
#include "update.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) KERNEL(FLAT_UPDATE p) {
    const OPTION rule(p.update);
    const int64 all = (int64)gridDim.x * THREADS * WIDE;
    for (int64 i = ((int64)blockIdx.x * THREADS + threadIdx.x) * WIDE; i < p.length; i += all) {
        const int count = (int)(p.length - i < WIDE ? p.length - i : WIDE);
        const int64 offset = i * sizeof(real);
        const auto old = rule.before<WIDE>(offset, count);
        rule.after<WIDE>(offset, old, read<WIDE>((const char*)p.gradient + offset, count), count);
    }
}
