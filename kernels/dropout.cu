// Dropout: dropout.py in CUDA C++.  A thread takes the elements that one value of Philox's counter decides on.
#include "functions.cuh"

typedef unsigned long long uint64;

struct Words {
    uint64 word[4];
};

FUNCTION Words philox(uint64 counter, uint64 key0, uint64 key1) {
    const uint64 M0 = 0xD2E7470EE14C6C93ULL, M1 = 0xCA5A826395121157ULL;
    uint64 a = counter, b = 0, c = 0, d = 0;
#pragma unroll
    for (int round = 0; round < 10; round++) {
        const uint64 high0 = __umul64hi(M0, a), low0 = M0 * a, high1 = __umul64hi(M1, c), low1 = M1 * c;
        a = high1 ^ b ^ key0, b = low1, c = high0 ^ d ^ key1, d = low0;
        key0 += 0x9E3779B97F4A7C15ULL, key1 += 0xBB67AE8584CAA73BULL;
    }
    return {{a, b, c, d}};
}

FUNCTION void run(const DROPOUT& p, const STEP& s, const Block& block) {
    const int64* key = (const int64*)p.key;
    const uint64 stream = (uint64)(p.stream + key[1] + *(const int64*)s.step);
    const real scale = (real)__longlong_as_double(p.scale);
    const real* source = (const real*)p.source;
    real* target = (real*)p.target;
    for (int64 group = block.x * THREADS + threadIdx.x; group * 8 < p.length; group += block.width * THREADS) {
        const Words words = philox((uint64)(p.block + group) + 1, (uint64)key[0], stream);
#pragma unroll
        for (int i = 0; i < 8; i++) {
            const int64 half = (int64)(words.word[i / 2] >> 32 * (i % 2) & 0xFFFFFFFFULL), e = group * 8 + i;
            if (e < p.length) target[e] = select(half >= p.threshold, source[e] * scale, 0);
        }
    }
}
