// What the kernels of a matrix product share: their arguments, the order of their tiles, and the epilogue.
//
//     V = alpha A B + beta C + bias          (M, N), with A (M, K) and B (K, N)
//     C = activation(V) + residual
//
// or, for a backward pass, C = V activation'(aux). Everything is addressed by strides, counted in elements and signed;
// C's, aux's and residual's columns are adjacent. A transposed operand is one with its strides swapped. See
// gpunet/ops/gemm.py for the side that launches, and matmul_reference in matmul_simt.cu for the plainest form.
#pragma once
#include "numeric.cuh"

// The axis along which an operand's elements are adjacent: that of the sum (K), the other one (of A, M; of B, N), or
// neither.
enum Layout { K_MAJOR, MN_MAJOR, STRIDED };

enum Activation {
    IDENTITY,
    RELU,
    GELU,       // x Phi(x), with the error function
    GELU_TANH,  // its approximation with a tanh
    SILU,       // x / (1 + exp(-x))
    DERIVATIVE  // added to one of the above: multiply V by the activation's derivative at aux instead
};

// The launching side packs this struct by the same list of fields, in this order (gpunet/ops/gemm.py).
struct MatmulArgs {
    const void* a;
    const void* b;
    void* c;
    const void* bias;      // or null. Element (row, col) adds bias[row * bias_row + col * bias_col].
    const void* residual;  // or null
    void* aux;             // or null. Where V is stored as the backward pass will want it; under DERIVATIVE, read.
    void* workspace;       // with splits > 1: partial sums (splits, batch, M, N), of the compute type
    long long a_row, a_col, b_row, b_col, c_row, bias_row, bias_col, residual_row, aux_row;
    long long a_batch[2], b_batch[2], c_batch[2], residual_batch[2], aux_batch[2];  // outer, inner; may be 0
    double alpha, beta;
    int m, n, k;
    int batch, batch_inner;  // the number of products; product z is (z / batch_inner, z % batch_inner)
    int splits, split_k;     // the sum over K is cut into `splits` parts of `split_k` (the last may be shorter)
    int activation;
};

// The offset of product z, given an operand's two batch strides.
DEVICE long long batch_offset(const MatmulArgs& args, const long long (&stride)[2], int z) {
    return z / args.batch_inner * stride[0] + z % args.batch_inner * stride[1];
}

struct Tile {
    int row, col;
};

// Which tile a block works on. Blocks that run at the same time take tiles of a few rows of tiles, column by column, so
// that the parts of A and B they read are shared through the L2 cache.
DEVICE Tile tile_at(int index, int tiles_m, int tiles_n) {
    constexpr int GROUP = 8;
    const int group = index / (GROUP * tiles_n), first = group * GROUP;
    const int rows = min(tiles_m - first, GROUP), within = index - group * GROUP * tiles_n;
    return {first + within % rows, within / rows};
}

DEVICE float exponential(float x) { return expf(x); }
DEVICE double exponential(double x) { return exp(x); }
DEVICE float error_function(float x) { return erff(x); }
DEVICE double error_function(double x) { return erf(x); }
DEVICE float hyperbolic_tangent(float x) { return tanhf(x); }
DEVICE double hyperbolic_tangent(double x) { return tanh(x); }

template <class F>
DEVICE F activate(int activation, F x) {
    switch (activation) {
        case RELU:
            return x < F(0) ? F(0) : x;  // a NaN stays one
        case GELU:
            return F(0.5) * x * (F(1) + error_function(x * F(0.70710678118654752440)));
        case GELU_TANH: {
            const F u = F(0.79788456080286535588) * (x + F(0.044715) * x * x * x);
            return F(0.5) * x * (F(1) + hyperbolic_tangent(u));
        }
        case SILU:
            return x / (F(1) + exponential(-x));
        default:
            return x;
    }
}

// The derivative of `activate` at x. ReLU's is 0 at 0.
template <class F>
DEVICE F activation_slope(int activation, F x) {
    switch (activation) {
        case RELU:
            return x > F(0) ? F(1) : F(0);
        case GELU: {
            const F density = F(0.39894228040143267794) * exponential(F(-0.5) * x * x);
            return F(0.5) * (F(1) + error_function(x * F(0.70710678118654752440))) + x * density;
        }
        case GELU_TANH: {
            const F u = F(0.79788456080286535588) * (x + F(0.044715) * x * x * x), t = hyperbolic_tangent(u);
            const F slope = F(0.79788456080286535588) * (F(1) + F(3 * 0.044715) * x * x);
            return F(0.5) * (F(1) + t) + F(0.5) * x * (F(1) - t * t) * slope;
        }
        case SILU: {
            const F s = F(1) / (F(1) + exponential(-x));
            return s * (F(1) + x * (F(1) - s));
        }
        default:
            return F(1);
    }
}

// What is done with a sum of products. T is the type of C, bias, residual and aux; made once per product z.
template <class T>
struct Epilogue {
    using Storage = typename Number<T>::Storage;
    using F = typename Number<T>::Compute;

    const MatmulArgs& args;
    Storage* c;
    Storage* aux;
    const Storage* bias;
    const Storage* residual;
    F* partial;  // this split's part of the workspace, where the sum over K is split
    F alpha, beta;

    DEVICE Epilogue(const MatmulArgs& args, int z, int split) : args(args) {
        c = static_cast<Storage*>(args.c) + batch_offset(args, args.c_batch, z);
        aux = static_cast<Storage*>(args.aux);
        if (aux) aux += batch_offset(args, args.aux_batch, z);
        bias = static_cast<const Storage*>(args.bias);
        residual = static_cast<const Storage*>(args.residual);
        if (residual) residual += batch_offset(args, args.residual_batch, z);
        partial = nullptr;
        if (args.splits > 1)
            partial = static_cast<F*>(args.workspace) +
                      (static_cast<long long>(split) * args.batch + z) * args.m * static_cast<long long>(args.n);
        alpha = F(args.alpha);
        beta = F(args.beta);
    }

    // The value of C at (row, col), whose sum of products is `sum`. Also writes aux.
    DEVICE F finish(int row, int col, F sum) const {
        F v = alpha * sum;
        if (beta != F(0)) v += beta * Number<T>::load(c[row * args.c_row + col]);
        if (bias) v += Number<T>::load(bias[row * args.bias_row + col * args.bias_col]);
        if (args.activation >= DERIVATIVE) {
            v *= activation_slope(args.activation - DERIVATIVE, F(Number<T>::load(aux[row * args.aux_row + col])));
        } else {
            if (aux) aux[row * args.aux_row + col] = Number<T>::store(v);
            v = activate(args.activation, v);
        }
        if (residual) v += Number<T>::load(residual[row * args.residual_row + col]);
        return v;
    }

    // Finish and store N sums of adjacent columns from (row, col) on. Those outside of the matrix are left out.
    template <int N>
    DEVICE void store(int row, int col, const F (&sums)[N]) const {
        if (row >= args.m || col >= args.n) return;
        const bool whole = col + N <= args.n;
        if (partial) {
            F* to = partial + row * static_cast<long long>(args.n) + col;
            if (whole && is_aligned<F, N>(to)) {
                Vector<F, N> v;
#pragma unroll
                for (int i = 0; i < N; i++) v.at[i] = sums[i];
                *reinterpret_cast<Vector<F, N>*>(to) = v;
            } else {
#pragma unroll
                for (int i = 0; i < N; i++)
                    if (col + i < args.n) to[i] = sums[i];
            }
            return;
        }
        Storage* to = c + row * args.c_row + col;
        Vector<Storage, N> v;
#pragma unroll
        for (int i = 0; i < N; i++)
            if (col + i < args.n) v.at[i] = Number<T>::store(finish(row, col + i, sums[i]));
        if (whole && is_aligned<Storage, N>(to)) {
            *reinterpret_cast<Vector<Storage, N>*>(to) = v;
        } else {
#pragma unroll
            for (int i = 0; i < N; i++)
                if (col + i < args.n) to[i] = v.at[i];
        }
    }

    template <class U, int N>
    static DEVICE bool is_aligned(const U* p) {
        return reinterpret_cast<unsigned long long>(p) % (sizeof(U) * N) == 0;
    }
};
