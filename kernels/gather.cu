// A batch out of the data set:  target[n] = source[order[step * rows + n]],  a block a row, rows of any kind as bytes.
template <class Word>
FUNCTION void copy(int64 source, int64 target, int64 bytes) {
#pragma unroll 1
    for (int64 i = threadIdx.x; i < bytes / (int64)sizeof(Word); i += THREADS) ((Word*)target)[i] = ((const Word*)source)[i];
}

FUNCTION void run(const GATHER& p, const STEP& s, const Block& block) {
    const int64 n = block.x, from = ((const int64*)p.order)[*(const int64*)s.step * p.rows + n];
    const int64 source = p.source + from * p.row_bytes, target = p.target + n * p.row_bytes;
    if ((p.source | p.target | p.row_bytes) % 16 == 0)
        copy<int4>(source, target, p.row_bytes);
    else if ((p.source | p.target | p.row_bytes) % 4 == 0)
        copy<int>(source, target, p.row_bytes);
    else
        copy<char>(source, target, p.row_bytes);
}
