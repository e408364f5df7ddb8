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

template <bool MOMENTUM, bool NESTEROV>
struct Descent {
    template <int N>
    struct Before {
        Vector<N> w, v;
    };
    char *parameter, *state;
    real lr, momentum, decay;

    FUNCTION Descent(const UPDATE& p) : parameter((char*)p.parameter), state((char*)p.state) {
        const real* hyper = (const real*)p.hyper;
        lr = hyper[0], momentum = hyper[1], decay = hyper[2];
    }
    template <int N>
    FUNCTION Before<N> before(int64 offset, int count) const {
        Before<N> old;
        old.w = read<N>(parameter + offset, count);
        if (MOMENTUM) old.v = read<N>(state + offset, count);
        return old;
    }
    template <int N>
    FUNCTION void after(int64 offset, const Before<N>& old, const Vector<N>& g, int count) const {
        Vector<N> w, v;
#pragma unroll
        for (int j = 0; j < N; j++) {
            real step = fused(decay, old.w.at[j], g.at[j]);
            if (MOMENTUM) {
                v.at[j] = fused(momentum, old.v.at[j], step);
                step = NESTEROV ? fused(momentum, v.at[j], step) : v.at[j];
            }
            w.at[j] = fused(-lr, step, old.w.at[j]);
        }
        if (MOMENTUM) write(state + offset, v, count);
        write(parameter + offset, w, count);
    }
};

typedef Descent<false, false> r_sgd;
typedef Descent<true, false> r_momentum;
typedef Descent<true, true> r_nesterov;
