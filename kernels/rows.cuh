// What the kernels on rows of outputs share: a block of THREADS a row.
#pragma once
#include "functions.cuh"

// The sum of `length` >= 1 numbers in chunks of CHUNK, computed by every thread.
FUNCTION real ordered_sum(const real* numbers, int64 length) {
    real total = 0;
    for (int64 start = 0; start < length; start += CHUNK) {
        const int64 end = start + CHUNK < length ? start + CHUNK : length;
        real chunk = numbers[start];
        for (int64 i = start + 1; i < end; i++) chunk += numbers[i];
        total = start == 0 ? chunk : total + chunk;
    }
    return total;
}

struct Exponentials {
    real m, sum;
};

// Write exp(z - m), m = max z, for one row, which may be Z itself; give m and the sum to every thread of the block.
FUNCTION Exponentials exponentials(const real* Z, int64 columns, real* target) {
    real m = Z[0];
    for (int64 o = 1; o < columns; o++) m = select(Z[o] > m, Z[o], m);
    __syncthreads();  // everybody has m before anybody writes
    for (int64 o = threadIdx.x; o < columns; o += THREADS) target[o] = exp_(Z[o] - m);
    __syncthreads();
    real sum = ordered_sum(target, columns);
    __syncthreads();  // and the sum before the row is written again
    return {m, sum};
}
