// The matrix product under all three passes, in the order of README.md: C(m, n) = finish(sum_k left(m, k) right(n, k)).
//
// A block of threads computes a tile of BM x BN results, a thread TM x TN of them.  Slices of SLICE k-steps of both operands
// go through shared memory, [k][m] and [k][n], in a ring of STAGES that asynchronous copies fill ahead of the computation.  A
// chunk of CHUNK k-steps has accumulators of its own, added to the totals at its end; k is never padded, for acc + 0 would
// turn -0 into +0.
//
// Where there are too few tiles for the device, block.y takes `steps` k-steps of the tile, whole chunks: every chunk's sums
// go to `partials`, and the tile's last block to arrive adds them in ascending order.  `arrived` is left at zero.
//
// BM, BN, TM, TN and THREADS = (BM / TM) (BN / TN) are macros, and ALIGNED: operands that lie along m or n have 16-byte rows.
// LEFT_K and RIGHT_K say which operands lie along k.  A finish reads with before(), for some results at once, what after()
// needs besides the sums.
#pragma once
#include "memory.cuh"

FUNCTION constexpr int least(int a, int b) { return a < b ? a : b; }

constexpr int SLICE = 16, PAD = 4;
constexpr int STAGES = least(4, 48 * 1024 / (SLICE * (BM + BN + 2 * PAD) * (int)sizeof(real)));
constexpr int GM = least(TM, WIDE), GN = least(TN, WIDE);  // neighbouring results of a thread; 8 GM or 4 GN further on the next
constexpr int LANES_M = 8, LANES_N = 4, WARPS_N = BN / (LANES_N * TN);
static_assert(BM / TM * (BN / TN) == THREADS && STAGES >= 2, "a tile's threads and shared memory");

typedef Vector<GN> Results;

struct Ring {
    real A[STAGES][SLICE][BM + PAD];
    real B[STAGES][SLICE][BN + PAD];
    bool last_to_arrive;
};

struct Operand {
    const char* data;
    int64 row, k;  // bytes between neighbours along m (or n), and along k
};

// A thread's share of copying an operand, slice by slice: what is beyond the last row is that row again, never used.
template <int BR, bool ALONG_K>
struct Share {
    static constexpr int WIDTH = !ALONG_K && ALIGNED ? least(WIDE, BR * SLICE / THREADS) : 1, LINE = ALONG_K ? SLICE : BR / WIDTH;
    static constexpr int COPIES = BR * SLICE / WIDTH / THREADS, STEP = THREADS / LINE;  // lines between a thread's copies
    static_assert(THREADS % LINE == 0 && BR * SLICE / WIDTH % THREADS == 0, "all threads copy the same");
    const char* from;
    int64 step;
    real* to;
    int k;
    unsigned offset[ALONG_K ? COPIES : 1], pitch;  // bytes; not along k the copies are `pitch` apart

    FUNCTION Share(int thread, const Operand& operand, int64 row, int64 rows, int64 begin, real (*shared)[BR + PAD]) {
        const int line = thread / LINE, place = thread % LINE * WIDTH, r = ALONG_K ? line : place;
        const int last = (int)(rows - row < BR ? rows - row : BR) - WIDTH;
        k = ALONG_K ? place : line;
        to = &shared[k][r];
        from = operand.data + row * operand.row + begin * operand.k;
        step = SLICE * operand.k;
        pitch = STEP * (unsigned)operand.k;
#pragma unroll
        for (int c = 0; c < (ALONG_K ? COPIES : 1); c++)
            offset[c] = (unsigned)min(r + c * STEP, last) * (unsigned)operand.row + (unsigned)k * (unsigned)operand.k;
    }
    FUNCTION void copy(int stage, int left) {
#pragma unroll
        for (int c = 0; c < COPIES; c++)
            if (k + (ALONG_K ? 0 : c * STEP) < left)
                copy_async<WIDTH>(
                    to + stage * SLICE * (BR + PAD) + c * STEP * (ALONG_K ? 1 : BR + PAD),
                    from + offset[ALONG_K ? c : 0] + (ALONG_K ? 0 : c * pitch)
                );
        from += step;
    }
};

// acc += a b^T for one k: a thread's rows and columns come in groups, so that a warp's loads meet no bank twice.
FUNCTION void multiply_add(real (&acc)[TM][TN], const real* a_row, const real* b_row) {
    Vector<GM> a[TM / GM];
    Vector<GN> b[TN / GN];
#pragma unroll
    for (int g = 0; g < TM / GM; g++) a[g] = *(const Vector<GM>*)(a_row + g * LANES_M * GM);
#pragma unroll
    for (int g = 0; g < TN / GN; g++) b[g] = *(const Vector<GN>*)(b_row + g * LANES_N * GN);
#pragma unroll
    for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < TN; j++) acc[i][j] = fused(a[i / GM].at[i % GM], b[j / GN].at[j % GN], acc[i][j]);
}

FUNCTION void add_chunk(real (&total)[TM][TN], const real (&acc)[TM][TN], bool first) {
#pragma unroll
    for (int i = 0; i < TM; i++)
#pragma unroll
        for (int j = 0; j < TN; j++) total[i][j] = first ? acc[i][j] : total[i][j] + acc[i][j];
}

FUNCTION Results results(const real (&sums)[TM][TN], int i, int group) {
    Results v;
#pragma unroll
    for (int j = 0; j < GN; j++) v.at[j] = sums[i][group * GN + j];
    return v;
}

// What the finish needs of its record is read after the sums are made: they need the registers.
template <class Finish, bool LEFT_K, bool RIGHT_K, class Record>
FUNCTION void product(
    const Operand& left, const Operand& right, const PRODUCT& p, const SPLIT& split, const Block& block, int tile,
    const Record& record
) {
    Ring& ring = *(Ring*)block.shared;
    const int tiles_n = (int)((p.N + BN - 1) / BN), row = tile / tiles_n * BM, col = tile % tiles_n * BN;
    const int64 begin = block.y * split.steps;
    const int length = (int)(p.K - begin < split.steps ? p.K - begin : split.steps);
    const int thread = block.thread, warp = thread / 32, lane = thread % 32;
    // Lanes that differ in bit 0 share their rows, in bit 1 their columns: a 16-byte load serves half a warp at a time.
    const int m0 = warp / WARPS_N * LANES_M * TM + (lane >> 1 & 3 | lane >> 2 & 4) * GM;
    const int n0 = warp % WARPS_N * LANES_N * TN + (lane & 1 | lane >> 2 & 2) * GN;
    const auto partial = [&](int64 chunk) {
        return (Results*)split.partials + (tile * ((p.K + CHUNK - 1) / CHUNK) + chunk) * (BM * BN / GN) + thread;
    };

    Share<BM, LEFT_K> share_A(thread, left, row, p.M, begin, ring.A[0]);
    Share<BN, RIGHT_K> share_B(thread, right, col, p.N, begin, ring.B[0]);
    int to_copy = length;
    auto copy = [&](int stage) {
        if (to_copy > 0) {
            share_A.copy(stage, to_copy);
            share_B.copy(stage, to_copy);
        }
        copy_async_commit();
        to_copy -= SLICE;
    };
#pragma unroll
    for (int s = 0; s < STAGES - 1; s++) copy(s);

    real total[TM][TN], acc[TM][TN];
    int stage = 0;
    for (int chunk = 0; chunk < length; chunk += CHUNK) {
#pragma unroll
        for (int i = 0; i < TM; i++)
#pragma unroll
            for (int j = 0; j < TN; j++) acc[i][j] = 0;

        int left = min(CHUNK, length - chunk);
        for (; left > 0; left -= SLICE) {
            copy_async_wait<STAGES - 2>();
            __syncthreads();  // this slice is there, and everybody has done with the one before it, whose place is next
            copy(stage == 0 ? STAGES - 1 : stage - 1);
            if (left >= SLICE) {
#pragma unroll
                for (int s = 0; s < SLICE; s++) multiply_add(acc, &ring.A[stage][s][m0], &ring.B[stage][s][n0]);
            } else {
#pragma unroll 1
                for (int s = 0; s < left; s++) multiply_add(acc, &ring.A[stage][s][m0], &ring.B[stage][s][n0]);
            }
            stage = stage + 1 == STAGES ? 0 : stage + 1;
        }
        if (block.height == 1) {
            add_chunk(total, acc, chunk == 0);
        } else {
            Results* sums = partial((begin + chunk) / CHUNK);
#pragma unroll
            for (int i = 0; i < TM; i++)
#pragma unroll
                for (int g = 0; g < TN / GN; g++) sums[(i * (TN / GN) + g) * THREADS] = results(acc, i, g);
        }
    }

    if (block.height > 1) {
        int* arrived = (int*)split.arrived + tile;
        __syncthreads();
        if (thread == 0) {
            __threadfence();  // what this block has written goes before
            ring.last_to_arrive = atomicAdd(arrived, 1) == block.height - 1;
            __threadfence();  // what the others have written comes after
        }
        __syncthreads();
        if (!ring.last_to_arrive) return;
        if (thread == 0) *arrived = 0;
        for (int64 chunk = 0; chunk * CHUNK < p.K; chunk++) {
            const Results* sums = partial(chunk);
#pragma unroll
            for (int i = 0; i < TM; i++)
#pragma unroll
                for (int j = 0; j < TN; j++) acc[i][j] = sums[(i * (TN / GN) + j / GN) * THREADS].at[j % GN];
            add_chunk(total, acc, chunk == 0);
        }
    }

    const Finish finish(record);
#pragma unroll
    for (int g = 0; g < TM / GM; g++) {
        typename Finish::Before before[GM][TN / GN];
#pragma unroll
        for (int write = 0; write < 2; write++)
#pragma unroll
            for (int i = 0; i < GM; i++)
#pragma unroll
                for (int h = 0; h < TN / GN; h++) {
                    const int64 m = row + m0 + g * LANES_M * GM + i, n = col + n0 + h * LANES_N * GN;
                    const int count = (int)(p.N - n < GN ? p.N - n : GN);
                    if (m >= p.M || count <= 0) continue;
                    if (write)
                        finish.after(m, n, before[i][h], results(total, g * GM + i, h), count);
                    else
                        before[i][h] = finish.before(m, n, count);
                }
    }
}
