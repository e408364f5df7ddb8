// Clipping by norm, then by value: clip.py in CUDA C++.
#include "functions.cuh"

FUNCTION void run(const CLIP& p, const STEP& s, const Block& block) {
    const real* limits = (const real*)p.limits;
    const real length = root(((const real*)p.total)[*(const int64*)s.step]), norm = limits[0], value = limits[1];
    const real scale = length > norm ? norm / length : (real)1;
    real* gradient = (real*)p.gradient;
    for (int64 i = block.x * THREADS + threadIdx.x; i < p.length; i += block.width * THREADS) {
        const real g = gradient[i] * scale;
        gradient[i] = select(g > value, value, select(g < -value, -value, g));
    }
}
