// What becomes of N gradients g side by side: update.py in CUDA C++.  `offset` is where their parameters are, in bytes.
//
// before() reads what after() needs, so that many reads can be under way before the first write.
#pragma once
#include "memory.cuh"

struct r_store {
    template <int N>
    struct Before {};
    char* parameter;

    FUNCTION r_store(const UPDATE& p) : parameter((char*)p.parameter) {}
    template <int N>
    FUNCTION Before<N> before(int64, int) const {
        return {};
    }
    template <int N>
    FUNCTION void after(int64 offset, const Before<N>&, const Vector<N>& g, int count) const {
        write(parameter + offset, g, count);
    }
};

template <bool AVERAGES, bool SQUARES, bool NESTEROV>
struct Descent {
    template <int N>
    struct Before {
        Vector<N> w, v, s;
    };
    char *parameter, *average, *square;
    const real* hyper;
    bool penalized;

    FUNCTION Descent(const UPDATE& p)
        : parameter((char*)p.parameter), average((char*)p.state1), square((char*)(AVERAGES ? p.state2 : p.state1)),
          hyper((const real*)p.hyper), penalized(hyper[L2] != 0 || hyper[L1] != 0 || hyper[DECAY] != 0) {}
    template <int N>
    FUNCTION Before<N> before(int64 offset, int count) const {
        Before<N> old;
        old.w = read<N>(parameter + offset, count);
        if (AVERAGES) old.v = read<N>(average + offset, count);
        if (SQUARES) old.s = read<N>(square + offset, count);
        return old;
    }
    template <int N>
    FUNCTION void after(int64 offset, const Before<N>& old, const Vector<N>& gradients, int count) const {
        Vector<N> w, v, s;
#pragma unroll
        for (int j = 0; j < N; j++) {
            real g = gradients.at[j], kept = old.w.at[j];
            if (penalized) {
                const real l1 = hyper[L1];
                g = fused(hyper[L2], kept, g) + select(kept > 0, l1, select(kept < 0, -l1, 0));
                kept = fused(-hyper[DECAY], kept, kept);
            }
            real u = g;
            if (AVERAGES) {
                const real beta = hyper[BETA1], scaled = hyper[GAIN1] * g;
                v.at[j] = fused(beta, old.v.at[j], scaled);
                u = NESTEROV ? fused(beta, v.at[j], scaled) : v.at[j];
            }
            if (SQUARES) {
                s.at[j] = fused(hyper[BETA2], old.s.at[j], hyper[GAIN2] * (g * g));
                u = u / (root(s.at[j]) + hyper[EPSILON]);
            }
            w.at[j] = fused(-hyper[LEARNING_RATE], u, kept);
        }
        if (AVERAGES) write(average + offset, v, count);
        if (SQUARES) write(square + offset, s, count);
        write(parameter + offset, w, count);
    }
};

typedef Descent<false, false, false> r_sgd;
typedef Descent<true, false, false> r_momentum;
typedef Descent<true, false, true> r_nesterov;
typedef Descent<false, true, false> r_rmsprop;
typedef Descent<true, true, false> r_adam;
