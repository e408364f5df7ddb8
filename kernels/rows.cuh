// What the kernels on rows of outputs share: a block of THREADS a row.
#pragma once
#include "functions.cuh"

struct Shared {
    real of[THREADS];  // a number for each thread
};

// The sum of `length` >= 1 numbers in chunks of CHUNK, a thread a chunk: known to every thread, after which they may change.
FUNCTION real ordered_sum(const real* numbers, int64 length, Shared& chunks) {
    real total = 0;
    for (int64 round = 0; round < length; round += THREADS * CHUNK) {
        const int64 start = round + threadIdx.x * CHUNK, end = start + CHUNK < length ? start + CHUNK : length;
        if (start < end) {
            real sum = numbers[start];
#pragma unroll 8
            for (int64 i = start + 1; i < end; i++) sum += numbers[i];
            chunks.of[threadIdx.x] = sum;
        }
        __syncthreads();
        for (int t = 0; t < THREADS && round + t * CHUNK < length; t++)
            total = round + t == 0 ? chunks.of[t] : total + chunks.of[t];
        __syncthreads();
    }
    return total;
}

// The largest of `length` >= 1 numbers; NaN if the first one is, other NaNs are passed over.
FUNCTION real largest(const real* numbers, int64 length, Shared& found) {
    real m = numbers[0];
    for (int64 i = threadIdx.x; i < length; i += THREADS) m = select(numbers[i] > m, numbers[i], m);
    found.of[threadIdx.x] = m;
    for (int half = THREADS / 2; half > 0; half /= 2) {
        __syncthreads();
        if (threadIdx.x < half) {
            const real other = found.of[threadIdx.x + half];
            found.of[threadIdx.x] = m = select(other > m, other, m);
        }
    }
    __syncthreads();
    return found.of[0];
}

struct Exponentials {
    real m, sum;
};

// Write exp(z - m), m = max z, for one row, which may be Z itself; give m and the sum to every thread of the block.
FUNCTION Exponentials exponentials(const real* Z, int64 columns, real* target, Shared& shared) {
    const real m = largest(Z, columns, shared);
    for (int64 o = threadIdx.x; o < columns; o += THREADS) target[o] = exp_(Z[o] - m);
    __syncthreads();
    return {m, ordered_sum(target, columns, shared)};
}
