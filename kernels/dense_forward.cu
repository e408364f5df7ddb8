// The forward pass of one layer:  Z = X W + b,  A = f(Z).   X (n, i), W (i, o), b (o) give A (n, o), and Z if asked for.
#include "activations.cuh"
#include "product.cuh"

struct Finish {
    typedef Results Before;  // the bias
    const FORWARD& q;

    FUNCTION Finish(const FORWARD& record) : q(record) {}
    FUNCTION Before before(int64, int64 o, int count) const { return read<GN>((const char*)q.bias + o * sizeof(real), count); }
    FUNCTION void after(int64 n, int64 o, const Before& bias, const Results& sum, int count) const {
        Results z, a;
#pragma unroll
        for (int j = 0; j < GN; j++) {
            z.at[j] = sum.at[j] + bias.at[j];
            a.at[j] = OPTION::f(z.at[j]);
        }
        if (q.Z) write((char*)q.Z + n * q.Z_row + o * sizeof(real), z, count);
        write((char*)q.A + n * q.A_row + o * sizeof(real), a, count);
    }
};

typedef Ring Shared;

FUNCTION void run(const PRODUCT& p, const SPLIT& s, const FORWARD& q, const Block& block) {
    Operand X = {(const char*)p.A, p.A_row, p.A_k}, W = {(const char*)p.B, sizeof(real), p.B_row};
    product<Finish, true, false>(X, W, p, s, block, block.x, q);
}
