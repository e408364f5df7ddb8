// What becomes of a gradient g: update.py in CUDA C++.  `offset` is where the parameter is, in bytes.
#pragma once

struct r_store {
    static FUNCTION void apply(const UPDATE& p, int64 offset, real g) { *(real*)(p.parameter + offset) = g; }
};

template <bool MOMENTUM, bool NESTEROV>
struct Descent {
    static FUNCTION void apply(const UPDATE& p, int64 offset, real g) {
        const real* hyper = (const real*)p.hyper;  // lr, momentum, weight decay
        real* w = (real*)(p.parameter + offset);
        real step = fused(hyper[2], *w, g);
        if (MOMENTUM) {
            real* state = (real*)(p.state + offset);
            real v = fused(hyper[1], *state, step);
            *state = v;
            step = NESTEROV ? fused(hyper[1], v, step) : v;
        }
        *w = fused(-hyper[0], step, *w);
    }
};

typedef Descent<false, false> r_sgd;
typedef Descent<true, false> r_momentum;
typedef Descent<true, true> r_nesterov;
