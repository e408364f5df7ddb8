// The backward pass of one hidden layer after its product:  dZ <- dZ * f'(Z), a block of THREADS a row.
//
// The record is that of activate: Z is what was saved, A is dZ.
#include "activations.cuh"

extern "C" __global__ void __launch_bounds__(THREADS) KERNEL(ACTIVATE p) {
    const real* saved = (const real*)(p.Z + blockIdx.x * p.Z_row);
    real* dZ = (real*)(p.A + blockIdx.x * p.A_row);
    for (int64 i = threadIdx.x; i < p.columns; i += THREADS) dZ[i] *= OPTION::gain(saved[i]);
}
