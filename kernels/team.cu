// How the blocks of a grid run one program of kernels, any number of steps of it, and wait for each other.
//
// It is team.py on the GPU: works that do not depend on each other make a stage, and each is so many blocks of a launch of its
// own.  All blocks of the grid are there at once (a cooperative launch); each takes the stage's next piece that is its own by
// number, and nobody begins with the next stage before all have done with this one.
//
// table: works, then their records.  A work's `end` counts the pieces of its stage up to its last, `next` is the first work
// of the next stage, `records` where in the table its records begin.
#include "functions.cuh"

constexpr int ROOM = 1024;  // words of a table that is read from shared memory

#ifdef CUDA_EMULATED
FUNCTION void wait_for_all(int64) { grid_sync(); }
#else
// `arrivals` counts the blocks that have ever come here.
FUNCTION void wait_for_all(int64 arrivals) {
    __syncthreads();
    if (threadIdx.x == 0) {
        unsigned long long* count = (unsigned long long*)arrivals;
        __threadfence();  // what this block has written goes before
        const unsigned long long before = atomicAdd(count, 1ULL), all = before - before % gridDim.x + gridDim.x;
        while (*(volatile unsigned long long*)count < all) {}
        __threadfence();  // what the others have written comes after
    }
    __syncthreads();
}
#endif

extern "C" __global__ void __launch_bounds__(THREADS, 1) team(TEAM_OF_BLOCKS p) {
    __shared__ alignas(16) Shared_by_all shared;
    __shared__ int64 words[ROOM], now;  // in registers next to nothing is kept: the products need them
    const int64* table = (const int64*)p.table;
    if (p.words <= ROOM) {
        for (int i = threadIdx.x; i < p.words; i += THREADS) words[i] = table[i];
        table = words;
    }
    const WORK* works = (const WORK*)table;
    if (threadIdx.x == 0) now = p.first_step;
    __syncthreads();
    while (now < p.last_step) {
        for (int first = 0; first < p.works; first = (int)works[first].next) {
            for (int piece = blockIdx.x; piece < works[works[first].next - 1].end; piece += gridDim.x) {
                int w = first, number = piece;
                for (; piece >= works[w].end; w++) number = piece - (int)works[w].end;
                const int width = (int)works[w].width;
                int thread = threadIdx.x;
                asm volatile("" : "+r"(thread));  // what products make of it is not to be kept from piece to piece
                const Block block = {number % width, number / width, width, (int)works[w].height, thread, &shared};
                run(works[w].kernel, (const char*)table + works[w].records, {(int64)&now}, block);
                __syncthreads();  // its shared memory is free
            }
            wait_for_all(p.arrivals);
        }
        if (threadIdx.x == 0) now++;
        __syncthreads();
    }
}
