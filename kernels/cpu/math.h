// Exponentials and what is made of them, on whole vectors. NaN and infinities give what they give in <cmath>.
#pragma once
#include "array.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

// 2 to the power of whole numbers from -126 to 127.
inline Vector power_of_two(IntVector n) { return reinterpret_cast<Vector>((n + 127) << 23); }

// x = n ln 2 + r with n whole and |r| <= ln(2) / 2, for |x| < 2^20: n as it is, and e^r - 1, exact to 2e-8 of e^r (e^r - 1
// to as much of itself). The polynomial, (e^r - 1 - r) / r^2, interpolates at Chebyshev's points.
struct Reduced {
    IntVector n;
    Vector whole;  // n
    Vector less_one;

    explicit Reduced(Vector x) {
        constexpr float MAGIC = 12582912.0f;  // 1.5 * 2^23: adding it leaves no digits behind the point
        Vector shifted = x * 1.44269504f + MAGIC;
        whole = shifted - MAGIC;
        n = reinterpret_cast<IntVector>(shifted) - 0x4b400000;
        Vector r = x - whole * 0.693359375f + whole * 2.12194440e-4f;  // ln 2 in two parts, the first of few digits
        Vector p = r * 0.001392618181f + 0.00836317763f;
        p = p * r + 0.04166655463f;
        p = p * r + 0.16666577f;
        p = p * r + 0.5f;
        less_one = p * r * r + r;
    }
};

inline Vector limited(Vector x, float least, float most) {  // NaN stays
#if defined(__AVX512F__)
    return _mm512_min_ps(broadcast(most), _mm512_max_ps(broadcast(least), x));
#else
    x = select(x < least, broadcast(least), x);
    return select(x > most, broadcast(most), x);
#endif
}

inline Vector exp(Vector x) {
    Reduced reduced(limited(x, -104.0f, 89.0f));
    Vector near_one = reduced.less_one + 1.0f;
#if defined(__AVX512F__)
    return _mm512_scalef_ps(near_one, reduced.whole);
#else
    IntVector half = reduced.n >> 1;  // in two steps, as 2^n may not be a normal number
    return near_one * power_of_two(half) * power_of_two(reduced.n - half);
#endif
}

// e^x - 1, for x <= 80; to the last digits also where x is near 0.
inline Vector expm1(Vector x) {
    Reduced reduced(limited(x, -20.0f, 80.0f));
    Vector scale = power_of_two(reduced.n);
    return reduced.less_one * scale + (scale - 1.0f);
}

inline Vector tanh(Vector x) {
    Vector e = expm1(limited(x, -10.0f, 10.0f) * 2.0f);
    return select(x == 0.0f, x, e / (e + 2.0f));
}

inline Vector sigmoid(Vector x) { return 1.0f / (1.0f + exp(-x)); }

// As the reference in gpunet/ops/elementwise.py: tanh of an odd polynomial, with a relative error of 3e-7.
inline Vector erf(Vector x) {
    Vector z = limited(x, -4.0f, 4.0f), u = z * z;
    Vector p = u * 1.41895891e-07f - 5.66906446e-06f;
    p = p * u + 8.76400812e-05f;
    p = p * u - 0.000619790111f;
    p = p * u - 0.000191826331f;
    p = p * u + 0.102769055f;
    p = p * u + 1.12837927f;
    return tanh(p * z);
}
