// The types of numbers that kernels load and store, and the type that each is computed in.
//
// half and bfloat16 are defined here, by their bits, so that kernels need no CUDA header at all: NVRTC alone compiles
// them. Arithmetic is done in float; only loads and stores convert.
#pragma once

#define DEVICE __device__ __forceinline__

// IEEE 754 binary16.
struct half {
    unsigned short bits;
};

// The upper 16 bits of a float.
struct bfloat16 {
    unsigned short bits;
};

// A float in memory whose products may be rounded to TF32 (8 bits of exponent, 10 of fraction): a request for
// precision, and a type of its own only in that it chooses a kernel.
struct tf32 {
    float value;
};

DEVICE float to_float(half x) {
#ifdef GN_EMULATED
    return gn::float_from_half(x.bits);
#else
    float y;
    asm("cvt.f32.f16 %0, %1;" : "=f"(y) : "h"(x.bits));
    return y;
#endif
}

DEVICE float to_float(bfloat16 x) { return __uint_as_float(static_cast<unsigned>(x.bits) << 16); }
DEVICE float to_float(tf32 x) { return x.value; }
DEVICE float to_float(float x) { return x; }

DEVICE half to_half(float x) {
    half y;
#ifdef GN_EMULATED
    y.bits = gn::half_from_float(x);
#else
    asm("cvt.rn.f16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#endif
    return y;
}

// Rounds to nearest, ties to even; a NaN stays one. By hand, as sm_70 and sm_75 have no instruction for it.
DEVICE bfloat16 to_bfloat16(float x) {
    bfloat16 y;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800 && !defined(GN_EMULATED)
    asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(y.bits) : "f"(x));
#else
    unsigned bits = __float_as_uint(x);
    const bool is_nan = (bits & 0x7fffffffu) > 0x7f800000u;
    bits += 0x7fffu + ((bits >> 16) & 1u);
    y.bits = is_nan ? 0x7fff : static_cast<unsigned short>(bits >> 16);
#endif
    return y;
}

// In either type that is computed in. exp, log, sqrt … have overloads for both.
template <class F>
DEVICE F infinity() {
    return F(__uint_as_float(0x7f800000u));
}

// Number<T>::Compute is the type that a T is computed in, Number<T>::Storage what it is in memory.
template <class T>
struct Number;

template <>
struct Number<double> {
    using Compute = double;
    using Storage = double;
    static DEVICE double load(double x) { return x; }
    static DEVICE double store(double x) { return x; }
};

template <>
struct Number<float> {
    using Compute = float;
    using Storage = float;
    static DEVICE float load(float x) { return x; }
    static DEVICE float store(float x) { return x; }
};

template <>
struct Number<tf32> : Number<float> {};

template <>
struct Number<half> {
    using Compute = float;
    using Storage = half;
    static DEVICE float load(half x) { return to_float(x); }
    static DEVICE half store(float x) { return to_half(x); }
};

template <>
struct Number<bfloat16> {
    using Compute = float;
    using Storage = bfloat16;
    static DEVICE float load(bfloat16 x) { return to_float(x); }
    static DEVICE bfloat16 store(float x) { return to_bfloat16(x); }
};

template <class T>
using Stored = typename Number<T>::Storage;
template <class T>
using Computed = typename Number<T>::Compute;

// N consecutive values of T, moved by one instruction of up to 16 bytes.
template <class T, int N>
struct __align__(sizeof(T) * N) Vector {
    T at[N];
};

// N adjacent elements, by one instruction of up to 16 bytes where `whole`; else the first `count`, the others zero.
template <class T, int N>
DEVICE void load_vector(const Stored<T>* from, bool whole, int count, Computed<T> (&x)[N]) {
    if (whole) {
        const Vector<Stored<T>, N> v = *reinterpret_cast<const Vector<Stored<T>, N>*>(from);
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = Number<T>::load(v.at[i]);
    } else {
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = i < count ? Number<T>::load(from[i]) : Computed<T>(0);
    }
}

template <class T, int N>
DEVICE void store_vector(Stored<T>* to, bool whole, int count, const Computed<T> (&x)[N]) {
    if (whole) {
        Vector<Stored<T>, N> v;
#pragma unroll
        for (int i = 0; i < N; i++) v.at[i] = Number<T>::store(x[i]);
        *reinterpret_cast<Vector<Stored<T>, N>*>(to) = v;
    } else {
#pragma unroll
        for (int i = 0; i < N; i++)
            if (i < count) to[i] = Number<T>::store(x[i]);
    }
}
