// The backward pass of one hidden layer:  dZ = (dZ' W'^T) * f'(Z).   dZ' (n, o), W' (i, o), saved (n, i) give dZ (n, i).
#include "activations.cuh"
#include "product.cuh"

struct Finish {
    typedef Results Before;  // saved
    HIDDEN q;

    FUNCTION Before before(int64 n, int64 i, int count) const {
        return read<GN>((const char*)q.saved + n * q.saved_row + i * sizeof(real), count);
    }
    FUNCTION void after(int64 n, int64 i, const Before& saved, const Results& sum, int count) const {
        Results dZ;
#pragma unroll
        for (int j = 0; j < GN; j++) dZ.at[j] = sum.at[j] * OPTION::gain(saved.at[j]);
        write((char*)q.dZ + n * q.dZ_row + i * sizeof(real), dZ, count);
    }
};

extern "C" __global__ void __launch_bounds__(THREADS, 1) KERNEL(PRODUCT p, SPLIT s, HIDDEN q) {
    Operand dZ = {(const char*)p.A, p.A_row, p.A_k}, W = {(const char*)p.B, p.B_row, sizeof(real)};
    product<true, true>(dZ, W, p.M, p.N, p.K, s, blockIdx.x, Finish{q});
}
