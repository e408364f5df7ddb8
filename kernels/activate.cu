// A = f(Z), softmax included: a block of THREADS a row.
#include "activations.cuh"
#include "rows.cuh"

struct f_softmax;

template <class F>
struct Row {
    static FUNCTION void run(const real* Z, int64 columns, real* A, Shared&) {
        for (int64 o = threadIdx.x; o < columns; o += THREADS) A[o] = F::f(Z[o]);
    }
};

template <>
struct Row<f_softmax> {
    static FUNCTION void run(const real* Z, int64 columns, real* A, Shared& shared) {
        real sum = exponentials(Z, columns, A, shared).sum;
        for (int64 o = threadIdx.x; o < columns; o += THREADS) A[o] = A[o] / sum;
    }
};

FUNCTION void run(const ACTIVATE& p, const Block& block) {
    const int64 n = block.x;
    Row<OPTION>::run((const real*)(p.Z + n * p.Z_row), p.columns, (real*)(p.A + n * p.A_row), *(Shared*)block.shared);
}
