// A = f(Z), softmax included: a block of THREADS a row.
#include "activations.cuh"
#include "rows.cuh"

struct f_softmax;

template <class F>
struct Row {
    static FUNCTION void run(const real* Z, int64 columns, real* A) {
        for (int64 o = threadIdx.x; o < columns; o += THREADS) A[o] = F::f(Z[o]);
    }
};

template <>
struct Row<f_softmax> {
    static FUNCTION void run(const real* Z, int64 columns, real* A) {
        real sum = exponentials(Z, columns, A).sum;
        for (int64 o = threadIdx.x; o < columns; o += THREADS) A[o] = A[o] / sum;
    }
};

extern "C" __global__ void __launch_bounds__(THREADS) KERNEL(ACTIVATE p) {
    const int64 n = blockIdx.x;
    Row<OPTION>::run((const real*)(p.Z + n * p.Z_row), p.columns, (real*)(p.A + n * p.A_row));
}
