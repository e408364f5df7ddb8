// The losses that are sums over the outputs, each above its derivative: losses.py in CUDA C++.
#pragma once
#include "functions.cuh"

struct c_binary_cross_entropy {
    static FUNCTION real loss(real z, real, real y) {
        return fused(-y, z, select(z > 0, z, 0) + log1p_(exp_(-magnitude(z))));
    }
    static FUNCTION real slope(real, real a, real y, real) { return a - y; }
};

struct c_squared_error {
    static FUNCTION real loss(real, real a, real y) {
        real d = a - y;
        return (d * (real)0.5) * d;
    }
    static FUNCTION real slope(real, real a, real y, real gain) { return (a - y) * gain; }
};

struct c_absolute_error {
    static FUNCTION real loss(real, real a, real y) { return magnitude(a - y); }
    static FUNCTION real slope(real, real a, real y, real gain) {
        real d = a - y;
        return select(d > 0, 1, select(d < 0, -1, d)) * gain;
    }
};

struct c_huber {
    static FUNCTION real loss(real, real a, real y) {
        real d = magnitude(a - y);
        return select(d > 1, d - (real)0.5, (d * (real)0.5) * d);
    }
    static FUNCTION real slope(real, real a, real y, real gain) {
        real d = a - y;
        return select(d > 1, 1, select(d < -1, -1, d)) * gain;
    }
};
