// The sums of squares of clip.py: one thread a chunk.
#include "functions.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) KERNEL(SQUARES p) {
    const real* numbers = (const real*)p.numbers;
    for (int64 c = (int64)blockIdx.x * THREADS + threadIdx.x; c * CHUNK < p.length; c += (int64)gridDim.x * THREADS) {
        const int64 end = (c + 1) * CHUNK < p.length ? (c + 1) * CHUNK : p.length;
        real acc = 0;
        for (int64 i = c * CHUNK; i < end; i++) acc = fused(numbers[i], numbers[i], acc);
        ((real*)p.sums)[c] = acc;
    }
}
