// Gradient descent over a flat array of parameters, in place.
#include "functions.cuh"
#include "update.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) KERNEL(FLAT_UPDATE p) {
    for (int64 i = (int64)blockIdx.x * THREADS + threadIdx.x; i < p.length; i += (int64)gridDim.x * THREADS)
        OPTION::apply(p.update, i * sizeof(real), ((const real*)p.gradient)[i]);
}
