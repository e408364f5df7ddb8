// The output layer:  dZ = scale dC/dz,  losses = scale C,  a block of THREADS an example.   Z (n, o), y (n, o) or labels (n).
#include "activations.cuh"
#include "losses.cuh"
#include "rows.cuh"

#if LABELS
FUNCTION real row(const real* Z, int64 columns, const char* y, real scale, real* dZ, Shared& shared) {
    Exponentials e = exponentials(Z, columns, dZ, shared);
    const int64 label = *(const int64*)y;
    for (int64 o = threadIdx.x; o < columns; o += THREADS) {
        real a = dZ[o] / e.sum;
        dZ[o] = (o == label ? a - 1 : a) * scale;
    }
    return log_(e.sum) - (Z[label] - e.m);
}
#elif SOFTMAX
FUNCTION real row(const real* Z, int64 columns, const char* y, real scale, real* dZ, Shared& shared) {
    const real* target = (const real*)y;
    Exponentials e = exponentials(Z, columns, dZ, shared);
    const real log_sum = log_(e.sum);
    for (int64 o = threadIdx.x; o < columns; o += THREADS) dZ[o] = target[o] * (log_sum - (Z[o] - e.m));
    __syncthreads();
    real loss = ordered_sum(dZ, columns, shared);
    for (int64 o = threadIdx.x; o < columns; o += THREADS) dZ[o] = (exp_(Z[o] - e.m) / e.sum - target[o]) * scale;
    return loss;
}
#else
FUNCTION real row(const real* Z, int64 columns, const char* y, real scale, real* dZ, Shared& shared) {
    const real* target = (const real*)y;
    for (int64 o = threadIdx.x; o < columns; o += THREADS) dZ[o] = LOSS::loss(Z[o], OPTION::f(Z[o]), target[o]);
    __syncthreads();
    real loss = ordered_sum(dZ, columns, shared);
    for (int64 o = threadIdx.x; o < columns; o += THREADS) {
        real z = Z[o], a = OPTION::f(z);
        dZ[o] = LOSS::slope(z, a, target[o], OPTION::gain(SAVES_Z ? z : a)) * scale;
    }
    return loss;
}
#endif

FUNCTION void run(const OUTPUT& p, const Block& block) {
    const int64 n = block.x;
    const real scale = *(const real*)(p.scale + n * p.scale_step);
    real loss = row((const real*)(p.Z + n * p.Z_row), p.columns, (const char*)(p.y + n * p.y_row), scale,
                    (real*)(p.dZ + n * p.dZ_row), *(Shared*)block.shared);
    if (threadIdx.x == 0) ((real*)p.losses)[n] = loss * scale;
}
