// exp, expm1, log, log1p, tanh, sigmoid and the normal distribution: functions.py in CUDA C++, operation by operation.
//
// `real` is float or double.  cuda_source.py writes it, the constants and the three series before this text, and the
// conversions between a number and its bits.  Compiled without contraction: fused() is the only fma.
#pragma once

FUNCTION real select(bool mask, real a, real b) { return mask ? a : b; }

FUNCTION real power_of_two(real n) {
    return from_bits((bits)((bits)n + EXPONENT_BIAS) << FRACTION_BITS);
}

struct Reduced {
    real n, m;  // x = n ln 2 + r, |r| <= ln(2)/2; m = e^r - 1
};

FUNCTION Reduced reduced(real x) {
    real n = round_even(x * (real)INV_LN2);
    n = select(n == n, n, 0);
    real r = fused(-n, (real)LN2_LOW, fused(-n, (real)LN2_HIGH, x));
    return {n, fused(exp_series(r), r * r, r)};
}

FUNCTION real exp_(real x) {
    x = select(x < (real)EXP_LOWEST, (real)EXP_LOWEST, select(x > (real)EXP_HIGHEST, (real)EXP_HIGHEST, x));
    Reduced s = reduced(x);
    real half = round_even(s.n * (real)0.5);
    return ((s.m + 1) * power_of_two(half)) * power_of_two(s.n - half);
}

FUNCTION real expm1_(real x) {
    x = select(x < (real)EXPM1_LOWEST, (real)EXPM1_LOWEST, select(x > (real)EXP_HIGHEST, (real)EXP_HIGHEST, x));
    Reduced s = reduced(x);
    real half = power_of_two(s.n - 1);
    return fused(half, s.m, half - (real)0.5) * 2;
}

FUNCTION real log_(real x) {
    bool small = x < (real)SMALLEST_NORMAL;
    real positive = select(x > 0, x, 1);
    real finite = select(positive < infinity(), positive, 1);
    real scaled = select(small, finite * (real)SCALE_UP, finite);
    bits raw = to_bits(scaled);
    real e = (real)((raw >> FRACTION_BITS) - EXPONENT_BIAS);
    real m = from_bits((raw & (((bits)1 << FRACTION_BITS) - 1)) | ((bits)EXPONENT_BIAS << FRACTION_BITS));
    bool large = m > (real)SQRT_2;
    e = select(large, e + 1, e);
    m = select(large, m * (real)0.5, m);
    e = select(small, e - (real)FRACTION_BITS, e);
    real f = m - 1;
    real s = f / (f + 2);
    real z = s * s;
    real half_square = f * f * (real)0.5;
    real rest = s * fused(z * 2, log_series(z), half_square);
    real result = fused(e, (real)LN2_HIGH, f - (half_square - fused(e, (real)LN2_LOW, rest)));
    result = select(x > 0, result, select(x == 0, -infinity(), not_a_number()));
    return select(x == infinity(), x, result);
}

FUNCTION real log1p_(real x) {
    real u = x + 1;
    return select(x < 1, log_(u) + (x - (u - 1)) / u, log_(u));
}

FUNCTION real tanh_(real x) {
    real size = magnitude(x);
    real t = expm1_(select(size > (real)TANH_HIGHEST, (real)TANH_HIGHEST, size) * 2);
    return with_sign(select(size > (real)TANH_HIGHEST, 1, t / (t + 2)), x);
}

FUNCTION real sigmoid_(real x) {
    real e = exp_(-magnitude(x));
    return select(x < 0, e, 1) / (e + 1);
}

struct Normal {
    real below, density;
};

FUNCTION Normal normal_(real x) {
    real size = magnitude(x);
    real square = size * size;
    real error = fused(size, size, -square);
    real finite = select(square < infinity(), error, 0);
    real e = exp_(square * (real)-0.5);
    e = fused(e, finite * (real)-0.5, e);
    real inverse = 1 / (size + (real)TAIL_CENTER);
    real t = select(size < infinity(), (size - (real)TAIL_CENTER) * inverse, 1);
    real below = e * (tail(t) * inverse);
    return {select(x < 0, below, 1 - below), e * (real)INV_SQRT_2PI};
}
