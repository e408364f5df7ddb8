// What tensor cores take of float32 numbers:  a = high + low, to 2^-22 |a|, either part with the 10 bits of fraction of tf32.
// Of infinities and NaN low is NaN, and so are the sums that they take part in.
#include "functions.cuh"
#include "memory.cuh"

// To nearest, ties to even; cut off where that would be infinite.
FUNCTION real to_tf32(real x) {
    if (x != x) return not_a_number();
    const bits b = to_bits(x);
    const real rounded = from_bits((b + 0xfff + (b >> 13 & 1)) & ~0x1fff);
    return magnitude(rounded) < infinity() ? rounded : from_bits(b & ~0x1fff);
}

FUNCTION void run(const PARTS& p, const Block& block) {
    const int64 all = block.width * THREADS * WIDE;
    for (int64 i = (block.x * THREADS + threadIdx.x) * WIDE; i < p.length; i += all) {
        const int count = (int)(p.length - i < WIDE ? p.length - i : WIDE);
        const int64 offset = i * sizeof(real);
        const Vector<WIDE> a = read<WIDE>((const char*)p.source + offset, count);
        Vector<WIDE> high, low;
#pragma unroll
        for (int j = 0; j < WIDE; j++) {
            high.at[j] = to_tf32(a.at[j]);
            low.at[j] = to_tf32(a.at[j] - high.at[j]);
        }
        write((char*)p.high + offset, high, count);
        write((char*)p.low + offset, low, count);
    }
}
