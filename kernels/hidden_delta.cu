// The backward pass of one hidden layer:  dZ = (dZ' W'^T) * f'(Z).   dZ' (n, o), W' (i, o), saved (n, i) give dZ (n, i).
#include "activations.cuh"
#include "product.cuh"

struct Finish {
    typedef Results Before;  // saved
    const HIDDEN& q;

    FUNCTION Finish(const HIDDEN& record) : q(record) {}
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

typedef Ring Shared;

FUNCTION void run(const PRODUCT& p, const SPLIT& s, const HIDDEN& q, const Block& block) {
    Operand dZ = {(const char*)p.A, p.A_row, p.A_k}, W = {(const char*)p.B, p.B_row, sizeof(real)};
    product<Finish, true, true>(dZ, W, p, s, block, block.x, q);
}
