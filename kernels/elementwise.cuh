// What elementwise ops compute: for each op of gpunet/ops/elementwise.py a functor of its name, in one line. T is the
// type that all of an op's inputs are converted to first, as NumPy does it; half and bfloat16 are computed in float.
#pragma once
#include "array.cuh"

template <class T>
constexpr bool is_real = false;
template <>
constexpr bool is_real<float> = true;
template <>
constexpr bool is_real<double> = true;

#define UNARY(name, ...)                                          \
    struct name {                                                 \
        template <class T>                                        \
        static DEVICE auto of(T a) { return __VA_ARGS__; }        \
    };
#define BINARY(name, ...)                                         \
    struct name {                                                 \
        template <class T>                                        \
        static DEVICE auto of(T a, T b) { return __VA_ARGS__; }   \
    };
#define TERNARY(name, ...)                                             \
    struct name {                                                      \
        template <class T>                                             \
        static DEVICE auto of(T a, T b, T c) { return __VA_ARGS__; }   \
    };

namespace op {

template <class T>
DEVICE T magnitude(T a) { return a < T(0) ? -a : a; }
DEVICE float magnitude(float a) { return ::fabsf(a); }
DEVICE double magnitude(double a) { return ::fabs(a); }

// The remainder with the sign of b; 0 for an integer b of 0.
template <class T>
DEVICE T modulo(T a, T b) {
    if constexpr (is_real<T>) {
        const T rest = ::fmod(a, b);
        if (rest == T(0)) return ::copysign(T(0), b);
        return (b < T(0)) != (rest < T(0)) ? rest + b : rest;
    } else {
        if (b == T(0) || b == T(-1)) return T(0);  // and the least integer has no quotient by -1
        const T rest = a % b;
        return rest != T(0) && (b < T(0)) != (rest < T(0)) ? rest + b : rest;
    }
}

// As NumPy has it, consistent with the remainder: the quotient is rounded after the remainder is taken off. Of
// infinities as the Array API has it, where it is that of the division.
template <class T>
DEVICE T floor_quotient(T a, T b) {
    if constexpr (is_real<T>) {
        if (b == T(0) || ::isinf(a) || ::isinf(b)) return ::floor(a / b);
        const T rest = ::fmod(a, b);
        T quotient = (a - rest) / b;
        if (rest != T(0) && (b < T(0)) != (rest < T(0))) quotient -= T(1);
        if (quotient == T(0)) return ::copysign(T(0), a / b);
        const T whole = ::floor(quotient);
        return quotient - whole > T(0.5) ? whole + T(1) : whole;
    } else {
        if (b == T(0)) return T(0);
        if (b == T(-1) && T(-1) < T(0)) return T(0) - a;
        const T quotient = a / b;
        return (a % b != T(0)) && (a < T(0)) != (b < T(0)) ? quotient - T(1) : quotient;
    }
}

template <class T>
DEVICE T power(T a, T b) {
    if constexpr (is_real<T>) {
        return ::pow(a, b);
    } else {
        T result = 1;
        for (unsigned long long rest = b; rest; rest >>= 1) {
            if (rest & 1) result *= a;
            a *= a;
        }
        return result;
    }
}

template <class T>
DEVICE T log_sum(T a, T b) {
    if (a == b) return a + T(0.69314718055994530942);  // infinities too
    const T apart = a - b;
    if (apart > T(0)) return a + ::log1p(::exp(-apart));
    return apart <= T(0) ? b + ::log1p(::exp(apart)) : apart;
}

template <class T>
DEVICE T shift_left(T a, T b) {
    constexpr int BITS = 8 * sizeof(T);
    return static_cast<unsigned long long>(b) < BITS ? static_cast<T>(static_cast<unsigned long long>(a) << b) : T(0);
}

template <class T>
DEVICE T shift_right(T a, T b) {
    constexpr int BITS = 8 * sizeof(T);
    return static_cast<unsigned long long>(b) < BITS ? static_cast<T>(a >> b) : a < T(0) ? T(-1) : T(0);
}

template <class T>
DEVICE T larger(T a, T b) { return a != a || a > b ? a : b; }
template <class T>
DEVICE T smaller(T a, T b) { return a != a || a < b ? a : b; }

template <class T>
DEVICE T logistic(T a) { return T(0.5) * ::tanh(T(0.5) * a) + T(0.5); }

// Where gelu's polynomials stop: beyond it is x or 0 to the last bit, and powers must not overflow.
template <class T>
DEVICE T within_40(T a) { return a < T(-40) ? T(-40) : a > T(40) ? T(40) : a; }
template <class T>
DEVICE T gelu_inner(T a) { return T(0.79788456080286535588) * (a + T(0.044715) * a * a * a); }

// --- arithmetic

BINARY(add, a + b)
BINARY(subtract, a - b)
BINARY(multiply, a * b)
BINARY(divide, a / b)
BINARY(maximum, larger(a, b))
BINARY(minimum, smaller(a, b))
BINARY(floor_divide, floor_quotient(a, b))
BINARY(remainder, modulo(a, b))
BINARY(hypot, ::hypot(a, b))
BINARY(atan2, ::atan2(a, b))
BINARY(logaddexp, log_sum(a, b))
BINARY(copysign, ::copysign(a, b))
BINARY(nextafter, ::nextafter(a, b))
BINARY(pow, power(a, b))
UNARY(negative, -a)
UNARY(positive, a)
UNARY(conj, a)
UNARY(abs, magnitude(a))
UNARY(sign, a != a ? a : T(T(a > T(0)) - T(a < T(0))))
UNARY(square, a * a)
UNARY(reciprocal, T(1) / a)
UNARY(floor, ::floor(a))
UNARY(ceil, ::ceil(a))
UNARY(trunc, ::trunc(a))
UNARY(round, ::rint(a))
UNARY(signbit, ::copysign(T(1), a) < T(0))
UNARY(isnan, a != a)
UNARY(isinf, a == a && a - a != a - a)
UNARY(isfinite, a - a == a - a)

// --- powers and exponentials

UNARY(sqrt, ::sqrt(a))
UNARY(exp, ::exp(a))
UNARY(expm1, ::expm1(a))
UNARY(log, ::log(a))
UNARY(log1p, ::log1p(a))
UNARY(log2, ::log2(a))
UNARY(log10, ::log10(a))

// --- trigonometry

UNARY(sin, ::sin(a))
UNARY(cos, ::cos(a))
UNARY(tan, ::tan(a))
UNARY(asin, ::asin(a))
UNARY(acos, ::acos(a))
UNARY(atan, ::atan(a))
UNARY(sinh, ::sinh(a))
UNARY(cosh, ::cosh(a))
UNARY(tanh, ::tanh(a))
UNARY(asinh, ::asinh(a))
UNARY(acosh, ::acosh(a))
UNARY(atanh, ::atanh(a))

// --- comparison and logic

BINARY(equal, a == b)
BINARY(not_equal, a != b)
BINARY(less, a < b)
BINARY(less_equal, a <= b)
BINARY(greater, a > b)
BINARY(greater_equal, a >= b)
BINARY(logical_and, a != T(0) && b != T(0))
BINARY(logical_or, a != T(0) || b != T(0))
BINARY(logical_xor, (a != T(0)) != (b != T(0)))
UNARY(logical_not, a == T(0))
BINARY(bitwise_and, a & b)
BINARY(bitwise_or, a | b)
BINARY(bitwise_xor, a ^ b)
BINARY(bitwise_left_shift, shift_left(a, b))
BINARY(bitwise_right_shift, shift_right(a, b))
UNARY(bitwise_invert, ~a)
UNARY(bitwise_invert_truth, !a)
TERNARY(where, a != T(0) ? b : c)
TERNARY(clip, smaller(larger(a, b), c))

// --- activations, and their gradients: of the gradient a of the result, and the result or the input b

UNARY(relu, a > T(0) || a != a ? a : T(0))
BINARY(relu_grad, a * T(b > T(0)))
BINARY(tanh_grad, a * (T(1) - b * b))
UNARY(sigmoid, logistic(a))
BINARY(sigmoid_grad, a * (b * (T(1) - b)))
UNARY(silu, a * logistic(a))
struct silu_grad {
    template <class T>
    static DEVICE T of(T a, T b) {
        const T s = logistic(b);
        return a * (s * (T(1) + b * (T(1) - s)));
    }
};
UNARY(erf, ::erf(a))
UNARY(gelu, T(0.5) * larger(a, T(-40)) * ::erfc(a * T(-0.70710678118654752440)))
UNARY(gelu_tanh, T(0.5) * a * (T(1) + ::tanh(gelu_inner(within_40(a)))))
struct gelu_grad {
    template <class T>
    static DEVICE T of(T a, T b) {
        const T z = within_40(b), density = ::exp(T(-0.5) * z * z) * T(0.39894228040143267794);
        return a * (T(0.5) * ::erfc(b * T(-0.70710678118654752440)) + z * density);
    }
};
struct gelu_tanh_grad {
    template <class T>
    static DEVICE T of(T a, T b) {
        const T z = within_40(b), t = ::tanh(gelu_inner(z));
        const T slope = T(0.79788456080286535588) * (T(1) + T(3 * 0.044715) * z * z);
        return a * (T(0.5) * (T(1) + t) + T(0.5) * z * (T(1) - t * t) * slope);
    }
};
BINARY(leaky_relu, a > T(0) ? a : b * a)
BINARY(elu, a > T(0) ? a : b * ::expm1(a))
BINARY(softplus, (larger(a * b, T(0)) + ::log1p(::exp(-magnitude(a * b)))) / b)

}  // namespace op

// Several functors as one, as gpunet/ops/chain.py writes them: Apply<op::add, Argument<0>, Apply<op::exp, Argument<1>>>
// is a + exp(b). What a part gives, a truth value for instance, is a number of type T to the next.
template <int I>
struct Argument {
    template <class T, class... Rest>
    static DEVICE T of(T a, Rest... rest) {
        if constexpr (I == 0)
            return a;
        else
            return Argument<I - 1>::of(rest...);
    }
};

template <class F, class... Parts>
struct Apply {
    template <class T, class... Rest>
    static DEVICE auto of(T a, Rest... rest) {
        return F::of(static_cast<T>(Parts::of(a, rest...))...);
    }
};

#undef UNARY
#undef BINARY
#undef TERNARY
