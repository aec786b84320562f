// Arrays of any strides, as kernels that work element by element see them; sums over warps and blocks.
#pragma once
#include "numeric.cuh"

constexpr int MOST_AXES = 8;

// The axes that several arrays are walked along together, the last one fastest. gpunet/ops/launch.py packs it.
struct Axes {
    int count;
    int shape[MOST_AXES];

    // The offset of element `index` (counted in the order of the axes) in an array of these strides.
    DEVICE long long offset(long long index, const long long (&strides)[MOST_AXES]) const {
        long long offset = 0;
#pragma unroll
        for (int i = MOST_AXES - 1; i > 0; i--) {
            if (i >= count) continue;
            const long long next = index < 0x80000000ll ? unsigned(index) / unsigned(shape[i]) : index / shape[i];
            offset += (index - next * shape[i]) * strides[i];
            index = next;
        }
        return offset + index * strides[0];
    }
};

// Integers and truth values, beside the floating-point types of numeric.cuh.
template <class T>
struct Integer {
    using Compute = T;
    using Storage = T;
    static DEVICE T load(T x) { return x; }
    static DEVICE T store(T x) { return x; }
};

template <> struct Number<bool> : Integer<bool> {};
template <> struct Number<signed char> : Integer<signed char> {};
template <> struct Number<unsigned char> : Integer<unsigned char> {};
template <> struct Number<short> : Integer<short> {};
template <> struct Number<unsigned short> : Integer<unsigned short> {};
template <> struct Number<int> : Integer<int> {};
template <> struct Number<unsigned> : Integer<unsigned> {};
template <> struct Number<long long> : Integer<long long> {};
template <> struct Number<unsigned long long> : Integer<unsigned long long> {};

// A number of type From as one of type To. What does not fit an integer is whatever the GPU makes of it.
template <class To, class From>
DEVICE Stored<To> convert(Stored<From> x) {
    return Number<To>::store(static_cast<Computed<To>>(Number<From>::load(x)));
}

// --- reductions, in a fixed order -----------------------------------------------------------------------------------

struct Add {
    template <class F>
    static DEVICE F of(F a, F b) { return a + b; }
};

// NaN if either is one, as NumPy and PyTorch have it.
struct Larger {
    template <class F>
    static DEVICE F of(F a, F b) { return a != a || a > b ? a : b; }
};

// The reduction of the values of the WIDTH lanes around this one, which each of them gets.
template <class Operation, int WIDTH = 32, class F>
DEVICE F reduce_lanes(F x) {
#pragma unroll
    for (int flip = WIDTH / 2; flip; flip /= 2) x = Operation::of(x, __shfl_xor_sync(0xffffffffu, x, flip));
    return x;
}

// The reduction of the values of all THREADS of a block, which each of them gets. `slots` is shared memory for one
// number per warp; the block may use it again after the next __syncthreads.
template <class Operation, int THREADS, class F>
DEVICE F reduce_block(F x, F* slots) {
    static_assert(THREADS % 32 == 0 && THREADS <= 1024, "whole warps");
    constexpr int WARPS = THREADS / 32;
    x = reduce_lanes<Operation>(x);
    if (WARPS == 1) return x;
    if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = x;
    __syncthreads();
    x = slots[0];
#pragma unroll
    for (int warp = 1; warp < WARPS; warp++) x = Operation::of(x, slots[warp]);
    return x;
}
