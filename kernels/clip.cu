// Clipping by norm, then by value: clip.py in CUDA C++.
#include "functions.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) KERNEL(CLIP p, STEP s) {
    const real* limits = (const real*)p.limits;
    const real length = root(((const real*)p.total)[*(const int64*)s.step]), norm = limits[0], value = limits[1];
    const real scale = length > norm ? norm / length : (real)1;
    real* gradient = (real*)p.gradient;
    for (int64 i = (int64)blockIdx.x * THREADS + threadIdx.x; i < p.length; i += (int64)gridDim.x * THREADS) {
        const real g = gradient[i] * scale;
        gradient[i] = select(g > value, value, select(g < -value, -value, g));
    }
}
