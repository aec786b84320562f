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

template <class F>
DEVICE F activate(int activation, F x) {
    switch (activation) {
        case RELU:
            return x < F(0) ? F(0) : x;  // a NaN stays one
        case GELU:
            return F(0.5) * x * (F(1) + erf(x * F(0.70710678118654752440)));
        case GELU_TANH: {
            const F u = F(0.79788456080286535588) * (x + F(0.044715) * x * x * x);
            return F(0.5) * x * (F(1) + tanh(u));
        }
        case SILU:
            return x / (F(1) + exp(-x));
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
            const F density = F(0.39894228040143267794) * exp(F(-0.5) * x * x);
            return F(0.5) * (F(1) + erf(x * F(0.70710678118654752440))) + x * density;
        }
        case GELU_TANH: {
            const F u = F(0.79788456080286535588) * (x + F(0.044715) * x * x * x), t = tanh(u);
            const F slope = F(0.79788456080286535588) * (F(1) + F(3 * 0.044715) * x * x);
            return F(0.5) * (F(1) + t) + F(0.5) * x * (F(1) - t * t) * slope;
        }
        case SILU: {
            const F s = F(1) / (F(1) + exp(-x));
            return s * (F(1) + x * (F(1) - s));
        }
        default:
            return F(1);
    }
}

// The same for N numbers at once: one branch for all of them.
template <int ACTIVATION, class F, int N>
DEVICE void activate_each(F (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) x[i] = activate(ACTIVATION, x[i]);
}

template <class F, int N>
DEVICE void activate_all(int activation, F (&x)[N]) {
    switch (activation) {
        case RELU:
            return activate_each<RELU>(x);
        case GELU:
            return activate_each<GELU>(x);
        case GELU_TANH:
            return activate_each<GELU_TANH>(x);
        case SILU:
            return activate_each<SILU>(x);
    }
}

// Multiplies each v by the activation's derivative at x.
template <int ACTIVATION, class F, int N>
DEVICE void slope_each(F (&v)[N], const F (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; i++) v[i] *= activation_slope(ACTIVATION, x[i]);
}

template <class F, int N>
DEVICE void slope_all(int activation, F (&v)[N], const F (&x)[N]) {
    switch (activation) {
        case RELU:
            return slope_each<RELU>(v, x);
        case GELU:
            return slope_each<GELU>(v, x);
        case GELU_TANH:
            return slope_each<GELU_TANH>(v, x);
        case SILU:
            return slope_each<SILU>(v, x);
    }
}

// What is done with sums of products. T is the type of C, bias, residual and aux; made once per product z.
template <class T>
struct Epilogue {
    using Storage = Stored<T>;
    using F = Computed<T>;

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

    // Finish and store N sums of adjacent columns from (row, col) on. Those outside of the matrix are left out.
    template <int N>
    DEVICE void store(int row, int col, const F (&sums)[N]) const {
        if (row >= args.m || col >= args.n) return;
        const int count = min(args.n - col, N);
        if (partial) {
            F* to = partial + row * static_cast<long long>(args.n) + col;
            store_vector<F>(to, count == N && is_aligned<N>(to), count, sums);
            return;
        }
        F v[N], x[N];
        Storage* to = c + row * args.c_row + col;
#pragma unroll
        for (int i = 0; i < N; i++) v[i] = alpha * sums[i];
        if (beta != F(0)) {
            read(to, count, x);
#pragma unroll
            for (int i = 0; i < N; i++) v[i] += beta * x[i];
        }
        if (bias) {
            const Storage* from = bias + row * args.bias_row + col * args.bias_col;
            if (args.bias_col == 1) {
                read(from, count, x);
            } else {
#pragma unroll
                for (int i = 0; i < N; i++) x[i] = i < count ? F(Number<T>::load(from[i * args.bias_col])) : F(0);
            }
#pragma unroll
            for (int i = 0; i < N; i++) v[i] += x[i];
        }
        if (args.activation >= DERIVATIVE) {
            read(aux + row * args.aux_row + col, count, x);
            slope_all(args.activation - DERIVATIVE, v, x);
        } else {
            if (aux) write(aux + row * args.aux_row + col, count, v);
            activate_all(args.activation, v);
        }
        if (residual) {
            read(residual + row * args.residual_row + col, count, x);
#pragma unroll
            for (int i = 0; i < N; i++) v[i] += x[i];
        }
        write(to, count, v);
    }

    // The first `count` of N adjacent numbers, at once where they lie well. The others are zeros.
    template <int N>
    static DEVICE void read(const Storage* from, int count, F (&x)[N]) {
        load_vector<T>(from, count == N && is_aligned<N>(from), count, x);
    }

    template <int N>
    static DEVICE void write(Storage* to, int count, const F (&x)[N]) {
        store_vector<T>(to, count == N && is_aligned<N>(to), count, x);
    }

    template <int N, class U>
    static DEVICE bool is_aligned(const U* p) {
        return reinterpret_cast<unsigned long long>(p) % (sizeof(U) * N) == 0;
    }
};
