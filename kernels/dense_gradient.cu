// The product of both passes:  dW = X^T dZ.   X (n, i), dZ (n, o) give dW (i, o), or move W at once.
#include "functions.cuh"
#include "product.cuh"
#include "update.cuh"

extern "C" __global__ void __launch_bounds__(THREADS, 1) KERNEL(PRODUCT p, UPDATE q) {
    Operand X = {(const char*)p.A, p.A_row, p.A_k}, dZ = {(const char*)p.B, sizeof(real), p.B_row};
    product<false, false>(X, dZ, p.M, p.N, p.K, [=](int64 i, int64 o, real sum) {
        OPTION::apply(q, i * q.row + o * (int64)sizeof(real), sum);
    });
}
