// The matrix product under all three passes, in the order of README.md: C(m, n) = finish(m, n, sum_k left(m, k) right(n, k)).
//
// A block of threads computes BM x BN results, each thread TM x TN of them.  Slices of SLICE k-steps of both operands go
// through shared memory, the next slice being loaded into registers while the present one is used.  A chunk of CHUNK k-steps
// has accumulators of its own, added to the totals at its end; k is never padded, for acc + 0 would turn -0 into +0.
// BM, BN, TM, TN and THREADS = (BM / TM) (BN / TN) are macros; LEFT_K and RIGHT_K say which operands lie along k in memory.
#pragma once

constexpr int SLICE = 16;

struct Operand {
    const char* data;
    int64 row, k;  // bytes between neighbours along m (or n), and along k
    FUNCTION real at(int64 r, int64 i) const { return *(const real*)(data + r * row + i * k); }
};

// One operand's slice on its way to shared memory: a thread's share of BR rows x SLICE, coalesced along whatever is contiguous.
template <int BR, bool K_CONTIGUOUS>
struct Slice {
    static constexpr int SHARE = BR * SLICE / THREADS;
    real held[SHARE];

    static FUNCTION int row_of(int e) { return K_CONTIGUOUS ? e / SLICE : e % BR; }
    static FUNCTION int k_of(int e) { return K_CONTIGUOUS ? e % SLICE : e / BR; }

    FUNCTION void load(const Operand& from, int64 row, int64 rows, int64 k, int64 end) {
#pragma unroll
        for (int s = 0; s < SHARE; s++) {
            int e = threadIdx.x + s * THREADS;
            int64 r = row + row_of(e), i = k + k_of(e);
            held[s] = r < rows && i < end ? from.at(r, i) : (real)0;
        }
    }
    FUNCTION void store(real (*shared)[BR + 4]) {
#pragma unroll
        for (int s = 0; s < SHARE; s++) {
            int e = threadIdx.x + s * THREADS;
            shared[k_of(e)][row_of(e)] = held[s];
        }
    }
};

template <bool LEFT_K, bool RIGHT_K, class Finish>
FUNCTION void product(Operand left, Operand right, int64 M, int64 N, int64 K, Finish finish) {
    __shared__ real A[2][SLICE][BM + 4], B[2][SLICE][BN + 4];
    const int64 row = (int64)blockIdx.y * BM, col = (int64)blockIdx.x * BN;
    const int m0 = threadIdx.x / (BN / TN) * TM, n0 = threadIdx.x % (BN / TN) * TN;

    Slice<BM, LEFT_K> next_A;
    Slice<BN, RIGHT_K> next_B;
    real total[TM][TN], acc[TM][TN];

    next_A.load(left, row, M, 0, K);
    next_B.load(right, col, N, 0, K);
    int buffer = 0;
    for (int64 chunk = 0; chunk < K; chunk += CHUNK) {
        const int64 end = chunk + CHUNK < K ? chunk + CHUNK : K;
#pragma unroll
        for (int i = 0; i < TM; i++)
#pragma unroll
            for (int j = 0; j < TN; j++) acc[i][j] = 0;

        for (int64 k = chunk; k < end; k += SLICE) {
            next_A.store(A[buffer]);
            next_B.store(B[buffer]);
            __syncthreads();  // the other buffer is free too: every thread has passed its last use
            if (k + SLICE < K) {
                next_A.load(left, row, M, k + SLICE, K);
                next_B.load(right, col, N, k + SLICE, K);
            }
            const int steps = end - k < SLICE ? (int)(end - k) : SLICE;
#pragma unroll
            for (int s = 0; s < SLICE; s++) {
                if (s >= steps) break;
                real a[TM], b[TN];
#pragma unroll
                for (int i = 0; i < TM; i++) a[i] = A[buffer][s][m0 + i];
#pragma unroll
                for (int j = 0; j < TN; j++) b[j] = B[buffer][s][n0 + j];
#pragma unroll
                for (int i = 0; i < TM; i++)
#pragma unroll
                    for (int j = 0; j < TN; j++) acc[i][j] = fused(a[i], b[j], acc[i][j]);
            }
            buffer ^= 1;
        }
#pragma unroll
        for (int i = 0; i < TM; i++)
#pragma unroll
            for (int j = 0; j < TN; j++) total[i][j] = chunk == 0 ? acc[i][j] : total[i][j] + acc[i][j];
    }
#pragma unroll
    for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < TN; j++)
            if (row + m0 + i < M && col + n0 + j < N) finish(row + m0 + i, col + n0 + j, total[i][j]);
}
