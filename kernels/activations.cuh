// The activation functions, each above its derivative: activations.py in CUDA C++, formula by formula.
//
// f_NAME is the activation NAME: f(z) gives a; gain(saved) gives f'(z) from a, or from z for gelu and silu.
// What z = inf, -inf and NaN give is said above each.
#pragma once
#include "functions.cuh"

// saves a.  inf, -inf, NaN give themselves; f' is 1
struct f_identity {
    static FUNCTION real f(real z) { return z; }
    static FUNCTION real gain(real) { return 1; }
};

// saves a.  inf, -inf, NaN give 1, 0, NaN; f' 0, 0, NaN
struct f_sigmoid {
    static FUNCTION real f(real z) { return sigmoid_(z); }
    static FUNCTION real gain(real a) { return a * (1 - a); }
};

// saves a.  inf, -inf, NaN give 1, -1, NaN; f' 0, 0, NaN
struct f_tanh {
    static FUNCTION real f(real z) { return tanh_(z); }
    static FUNCTION real gain(real a) { return fused(-a, a, 1); }
};

// saves a.  inf, -inf, NaN give 1.7159, -1.7159, NaN; f' 0 but for a rounding, the same, NaN
struct f_scaled_tanh {
    static FUNCTION real f(real z) { return tanh_(z * (real)TANH_SCALE) * (real)SCALED_TANH; }
    static FUNCTION real gain(real a) {
        return fused(-a, a, (real)(SCALED_TANH * SCALED_TANH)) * (real)(TANH_SCALE / SCALED_TANH);
    }
};

// saves a.  inf, -inf, NaN give inf, 0, NaN; f' 1, 0, 0
struct f_relu {
    static FUNCTION real f(real z) { return select(z < 0, 0, z); }
    static FUNCTION real gain(real a) { return select(a > 0, 1, 0); }
};

// saves a.  inf, -inf, NaN give themselves; f' 1, 0.01, 0.01
struct f_leaky_relu {
    static FUNCTION real f(real z) { return select(z < 0, z * (real)LEAK, z); }
    static FUNCTION real gain(real a) { return select(a > 0, 1, (real)LEAK); }
};

// saves a.  inf, -inf, NaN give inf, -1, NaN; f' 1, 0, NaN
struct f_elu {
    static FUNCTION real f(real z) { return select(z < 0, expm1_(z), z); }
    static FUNCTION real gain(real a) { return select(a > 0, 1, a + 1); }
};

// saves a.  inf, -inf, NaN give inf, -1.7581, NaN; f' 1.0507, 0, NaN
struct f_selu {
    static FUNCTION real f(real z) { return select(z < 0, expm1_(z) * (real)SELU_ALPHA, z) * (real)SELU_SCALE; }
    static FUNCTION real gain(real a) { return select(a > 0, (real)SELU_SCALE, a + (real)(SELU_SCALE * SELU_ALPHA)); }
};

// saves z.  inf, -inf, NaN give inf, NaN (-inf 0), NaN; f' NaN
struct f_gelu {
    static FUNCTION real f(real z) { return z * normal_(z).below; }
    static FUNCTION real gain(real z) {
        Normal n = normal_(z);
        return fused(z, n.density, n.below);
    }
};

// saves z.  inf, -inf, NaN give inf, NaN (-inf 0), NaN; f' NaN
struct f_silu {
    static FUNCTION real f(real z) { return z * sigmoid_(z); }
    static FUNCTION real gain(real z) {
        real s = sigmoid_(z);
        return fused(z * s, 1 - s, s);
    }
};

// saves a.  inf, -inf, NaN give inf, 0, NaN; f' 1, -0, NaN
struct f_softplus {
    static FUNCTION real f(real z) { return select(z > 0, z, 0) + log1p_(exp_(-magnitude(z))); }
    static FUNCTION real gain(real a) { return -expm1_(-a); }
};
