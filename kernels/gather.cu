// A batch out of the data set:  target[n] = source[order[step * rows + n]],  a block a row, rows of any kind as bytes.
extern "C" __global__ void __launch_bounds__(THREADS) KERNEL(GATHER p, STEP s) {
    const int64 n = blockIdx.x, from = ((const int64*)p.order)[*(const int64*)s.step * p.rows + n];
    const int* source = (const int*)(p.source + from * p.row_bytes);
    int* target = (int*)(p.target + n * p.row_bytes);
    for (int64 i = threadIdx.x; i < p.row_bytes / 4; i += THREADS) target[i] = source[i];
}
