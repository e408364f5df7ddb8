// The sums of squares of clip.py: one thread a chunk.
#include "functions.cuh"

FUNCTION void run(const SQUARES& p, const Block& block) {
    const real* numbers = (const real*)p.numbers;
    for (int64 c = block.x * THREADS + threadIdx.x; c * CHUNK < p.length; c += block.width * THREADS) {
        const int64 end = (c + 1) * CHUNK < p.length ? (c + 1) * CHUNK : p.length;
        real acc = 0;
        for (int64 i = c * CHUNK; i < end; i++) acc = fused(numbers[i], numbers[i], acc);
        ((real*)p.sums)[c] = acc;
    }
}
