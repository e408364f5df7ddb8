// The backward pass of one hidden layer:  dZ = (dZ' W'^T) * f'(Z).   dZ' (n, o), W' (i, o), saved (n, i) give dZ (n, i).
//
// The record describes W' dZ'^T, the CPU's order; here examples are the rows, so that dZ is written along its rows.
#include "activations.cuh"
#include "product.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1) KERNEL(PRODUCT p, HIDDEN q) {
    Operand dZ = {(const char*)p.B, p.B_row, sizeof(real)}, W = {(const char*)p.A, p.A_row, p.A_k};
    product<true, true>(dZ, W, p.N, p.M, p.K, [=](int64 n, int64 i, real sum) {
        real gain = OPTION::gain(((const real*)(q.saved + n * q.saved_row))[i]);
        ((real*)(q.dZ + n * q.dZ_row))[i] = sum * gain;
    });
}
