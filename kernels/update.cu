// Gradient descent over a flat array of parameters, in place.
#include "functions.cuh"
#include "update.cuh"

FUNCTION void run(const FLAT_UPDATE& p, const Block& block) {
    const OPTION rule(p.update);
    const int64 all = block.width * THREADS * WIDE;
    for (int64 i = (block.x * THREADS + threadIdx.x) * WIDE; i < p.length; i += all) {
        const int count = (int)(p.length - i < WIDE ? p.length - i : WIDE);
        const int64 offset = i * sizeof(real);
        const auto old = rule.before<WIDE>(offset, count);
        rule.after<WIDE>(offset, old, read<WIDE>((const char*)p.gradient + offset, count), count);
    }
}
