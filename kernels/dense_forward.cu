// The forward pass of one layer:  Z = X W + b,  A = f(Z).   X (n, i), W (i, o), b (o) give A (n, o), and Z if asked for.
#include "activations.cuh"
#include "product.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1) KERNEL(PRODUCT p, FORWARD q) {
    Operand X = {(const char*)p.A, p.A_row, p.A_k}, W = {(const char*)p.B, sizeof(real), p.B_row};
    product<true, false>(X, W, p.M, p.N, p.K, [=](int64 n, int64 o, real sum) {
        real z = sum + ((const real*)q.bias)[o];
        if (q.Z) ((real*)(q.Z + n * q.Z_row))[o] = z;
        ((real*)(q.A + n * q.A_row))[o] = OPTION::f(z);
    });
}
