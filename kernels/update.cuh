// What becomes of a gradient g: update.py in CUDA C++.  `offset` is where the parameter is, in bytes.
#pragma once

struct r_store {
    static FUNCTION void apply(const UPDATE& p, int64 offset, real g) { *(real*)(p.parameter + offset) = g; }
};

struct r_add {
    static FUNCTION void apply(const UPDATE& p, int64 offset, real g) { *(real*)(p.parameter + offset) += g; }
};

template <bool AVERAGES, bool SQUARES, bool NESTEROV>
struct Descent {
    static FUNCTION void apply(const UPDATE& p, int64 offset, real g) {
        const real* hyper = (const real*)p.hyper;
        real* parameter = (real*)(p.parameter + offset);
        const real w = *parameter, l1 = hyper[L1];
        g = fused(hyper[L2], w, g) + select(w > 0, l1, select(w < 0, -l1, 0));
        real u = g;
        if (AVERAGES) {
            real* state = (real*)(p.state1 + offset);
            const real beta = hyper[BETA1], scaled = hyper[GAIN1] * g;
            const real v = fused(beta, *state, scaled);
            *state = v;
            u = NESTEROV ? fused(beta, v, scaled) : v;
        }
        if (SQUARES) {
            real* state = (real*)((AVERAGES ? p.state2 : p.state1) + offset);
            const real scaled = hyper[GAIN2] * (g * g);
            const real s = fused(hyper[BETA2], *state, scaled);
            *state = s;
            u = u / (root(s) + hyper[EPSILON]);
        }
        const real kept = fused(-hyper[DECAY], w, w);
        *parameter = fused(-hyper[LEARNING_RATE], u, kept);
    }
};

typedef Descent<false, false, false> r_sgd;
typedef Descent<true, false, false> r_momentum;
typedef Descent<true, false, true> r_nesterov;
typedef Descent<false, true, false> r_rmsprop;
typedef Descent<true, true, false> r_adam;
