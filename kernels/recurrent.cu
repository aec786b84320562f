// What a time step of a recurrent network does beside its product with the state (gpunet/ops/recurrent.py), forward and
// backward, each in one kernel. Products, of which one per step is unavoidable, are those of kernels/matmul_*.cu; that
// of the LSTM and of the plain network adds inputs and bias in its epilogue.
//
// A thread takes N adjacent units of a row of the batch, for all gates, which lie side by side along a row. Every
// array is read once and written once. In half precision, products are stored in half precision, and what is carried
// from step to step in float: LSTM's c, GRU's h, and their gradients.
#include "array.cuh"

template <class F>
DEVICE F sigmoid(F x) { return F(1) / (F(1) + exp(-x)); }

// T is the type of the arrays that are `void`; `wide` ones are of the type that it is computed in. Null stands for
// zeros, or for what is not asked for.

// N units of one row: where they are, and loads and stores of a gate of theirs.
template <class T, int N>
struct Units {
    using F = Computed<T>;
    long long row;
    int units, unit;

    DEVICE Units(int index, int units) : units(units) {
        const int columns = units / N;
        row = index / columns;
        unit = static_cast<int>(index - row * columns) * N;
    }

    // Of an array of so many gates in a row.
    DEVICE long long at(int gates, int gate) const { return (row * gates + gate) * units + unit; }

    template <class U>
    DEVICE void load(const void* from, int gates, int gate, F (&x)[N]) const {
        if (from) {
            load_vector<U, N>(static_cast<const Stored<U>*>(from) + at(gates, gate), true, N, x);
        } else {
#pragma unroll
            for (int i = 0; i < N; i++) x[i] = F(0);
        }
    }
    template <class U>
    DEVICE void add(const void* from, int gates, int gate, F (&x)[N]) const {
        if (!from) return;
        F more[N];
        load<U>(from, gates, gate, more);
#pragma unroll
        for (int i = 0; i < N; i++) x[i] += more[i];
    }
    // The same for every row.
    DEVICE void add_bias(const void* bias, int gate, F (&x)[N]) const {
        if (!bias) return;
        F more[N];
        load_vector<T, N>(static_cast<const Stored<T>*>(bias) + gate * static_cast<long long>(units) + unit, true, N, more);
#pragma unroll
        for (int i = 0; i < N; i++) x[i] += more[i];
    }
    template <class U>
    DEVICE void store(void* to, int gates, int gate, const F (&x)[N]) const {
        store_vector<U, N>(static_cast<Stored<U>*>(to) + at(gates, gate), true, N, x);
    }
};

// For each N units of a batch.
#define EACH_UNITS(N) \
    for (int index = blockIdx.x * 256 + threadIdx.x; index < args.batch * (args.units / (N)); index += gridDim.x * 256)

struct LstmArgs {
    const void* sums;  // (B, 4H): inputs, and the product with h and the bias, if they are not null
    const void* bias;  // (4H,), where sums lacks it
    const void* wide_before;  // c (B, H)
    void* h;                  // (B, H)
    void* wide_c;             // (B, H)
    void* wide_gates;         // (B, 4H): i, f, g, o
    int batch, units;
};

template <class T, int N>
__global__ void __launch_bounds__(256) lstm_step(const __grid_constant__ LstmArgs args) {
    using F = Computed<T>;
    EACH_UNITS(N) {
        const Units<T, N> at(index, args.units);
        F gates[4][N], c[N], h[N];
#pragma unroll
        for (int k = 0; k < 4; k++) {
            at.template load<T>(args.sums, 4, k, gates[k]);
            at.add_bias(args.bias, k, gates[k]);
        }
        at.template load<F>(args.wide_before, 1, 0, c);
#pragma unroll
        for (int i = 0; i < N; i++) {
#pragma unroll
            for (int k = 0; k < 4; k++) gates[k][i] = k == 2 ? tanh(gates[k][i]) : sigmoid(gates[k][i]);
            c[i] = gates[1][i] * c[i] + gates[0][i] * gates[2][i];
            h[i] = gates[3][i] * tanh(c[i]);
        }
#pragma unroll
        for (int k = 0; k < 4; k++) at.template store<F>(args.wide_gates, 4, k, gates[k]);
        at.template store<F>(args.wide_c, 1, 0, c);
        at.template store<T>(args.h, 1, 0, h);
    }
}

struct LstmGradArgs {
    const void* wide_gates;    // (B, 4H)
    const void* wide_c;        // (B, H)
    const void* wide_before;   // c before the step
    const void* dh;            // (B, H), from the step behind this one
    const void* g_h;           // (B, H), from outside; and those of c and of the gates
    const void* wide_g_c;
    const void* wide_g_gates;
    const void* wide_dc;       // (B, H), from the step behind this one
    void* d;                   // (B, 4H), of the sums
    void* wide_dc_before;      // (B, H); may be where wide_dc is
    int batch, units;
};

template <class T, int N>
__global__ void __launch_bounds__(256) lstm_grad_step(const __grid_constant__ LstmGradArgs args) {
    using F = Computed<T>;
    EACH_UNITS(N) {
        const Units<T, N> at(index, args.units);
        F gates[4][N], c[N], before[N], dh[N], dc[N], d[4][N];
#pragma unroll
        for (int k = 0; k < 4; k++) at.template load<F>(args.wide_gates, 4, k, gates[k]);
        at.template load<F>(args.wide_c, 1, 0, c);
        at.template load<F>(args.wide_before, 1, 0, before);
        at.template load<T>(args.dh, 1, 0, dh);
        at.template add<T>(args.g_h, 1, 0, dh);
        at.template load<F>(args.wide_dc, 1, 0, dc);
        at.template add<F>(args.wide_g_c, 1, 0, dc);
#pragma unroll
        for (int i = 0; i < N; i++) {
            const F tangent_c = tanh(c[i]);
            dc[i] += dh[i] * gates[3][i] * (F(1) - tangent_c * tangent_c);
            d[0][i] = dc[i] * gates[2][i];
            d[1][i] = dc[i] * before[i];
            d[2][i] = dc[i] * gates[0][i];
            d[3][i] = dh[i] * tangent_c;
            dc[i] *= gates[1][i];
        }
#pragma unroll
        for (int k = 0; k < 4; k++) {
            at.template add<F>(args.wide_g_gates, 4, k, d[k]);
#pragma unroll
            for (int i = 0; i < N; i++)
                d[k][i] *= k == 2 ? F(1) - gates[k][i] * gates[k][i] : gates[k][i] * (F(1) - gates[k][i]);
            at.template store<T>(args.d, 4, k, d[k]);
        }
        at.template store<F>(args.wide_dc_before, 1, 0, dc);
    }
}

struct GruArgs {
    const void* inputs;       // (B, 3H)
    const void* products;     // (B, 3H): with h, and the bias
    const void* bias;         // (3H,), where there are no products
    const void* wide_before;  // h (B, H)
    void* h;                  // (B, H)
    void* wide_h;             // (B, H), or null; may be where wide_before is
    void* wide_gates;         // (B, 4H): r, z, n, s
    int batch, units;
};

template <class T, int N>
__global__ void __launch_bounds__(256) gru_step(const __grid_constant__ GruArgs args) {
    using F = Computed<T>;
    EACH_UNITS(N) {
        const Units<T, N> at(index, args.units);
        F x[3][N], p[3][N], h[N];
#pragma unroll
        for (int k = 0; k < 3; k++) {
            at.template load<T>(args.inputs, 3, k, x[k]);
            at.template load<T>(args.products, 3, k, p[k]);
            at.add_bias(args.bias, k, p[k]);
        }
        at.template load<F>(args.wide_before, 1, 0, h);
#pragma unroll
        for (int i = 0; i < N; i++) {
            x[0][i] = sigmoid(x[0][i] + p[0][i]);
            x[1][i] = sigmoid(x[1][i] + p[1][i]);
            x[2][i] = tanh(x[2][i] + x[0][i] * p[2][i]);
            h[i] = x[2][i] + x[1][i] * (h[i] - x[2][i]);
        }
#pragma unroll
        for (int k = 0; k < 3; k++) at.template store<F>(args.wide_gates, 4, k, x[k]);
        at.template store<F>(args.wide_gates, 4, 3, p[2]);
        at.template store<T>(args.h, 1, 0, h);
        if (args.wide_h) at.template store<F>(args.wide_h, 1, 0, h);
    }
}

struct GruGradArgs {
    const void* wide_gates;    // (B, 4H)
    const void* before;        // h before the step
    const void* product;       // (B, H), a part of dh from the step behind this one; the other part:
    const void* wide_dh;       // (B, H)
    const void* g_h;           // (B, H), from outside; and that of the gates
    const void* wide_g_gates;
    void* to_inputs;           // (B, 3H)
    void* to_products;         // (B, 3H)
    void* wide_dh_before;      // (B, H), without what comes through the products; may be where wide_dh is
    int batch, units;
};

template <class T, int N>
__global__ void __launch_bounds__(256) gru_grad_step(const __grid_constant__ GruGradArgs args) {
    using F = Computed<T>;
    EACH_UNITS(N) {
        const Units<T, N> at(index, args.units);
        F r[N], z[N], n[N], s[N], before[N], dh[N], d[4][N];
        at.template load<F>(args.wide_gates, 4, 0, r);
        at.template load<F>(args.wide_gates, 4, 1, z);
        at.template load<F>(args.wide_gates, 4, 2, n);
        at.template load<F>(args.wide_gates, 4, 3, s);
        at.template load<T>(args.before, 1, 0, before);
        at.template load<F>(args.wide_dh, 1, 0, dh);
        at.template add<T>(args.product, 1, 0, dh);
        at.template add<T>(args.g_h, 1, 0, dh);
#pragma unroll
        for (int k = 0; k < 4; k++) at.template load<F>(args.wide_g_gates, 4, k, d[k]);
#pragma unroll
        for (int i = 0; i < N; i++) {
            d[2][i] = (d[2][i] + dh[i] * (F(1) - z[i])) * (F(1) - n[i] * n[i]);
            d[1][i] = (d[1][i] + dh[i] * (before[i] - n[i])) * z[i] * (F(1) - z[i]);
            d[0][i] = (d[0][i] + d[2][i] * s[i]) * r[i] * (F(1) - r[i]);
            d[3][i] += d[2][i] * r[i];
            dh[i] *= z[i];
        }
#pragma unroll
        for (int k = 0; k < 3; k++) {
            at.template store<T>(args.to_inputs, 3, k, d[k]);
            at.template store<T>(args.to_products, 3, k, d[k == 2 ? 3 : k]);
        }
        at.template store<F>(args.wide_dh_before, 1, 0, dh);
    }
}

struct RnnArgs {
    const void* sums;  // (B, H): inputs, and the product with h and the bias, if they are not null
    const void* bias;  // (H,), where sums lacks it
    void* h;           // (B, H)
    int batch, units;
    int relu;  // or tanh
};

template <class T, int N>
__global__ void __launch_bounds__(256) rnn_step(const __grid_constant__ RnnArgs args) {
    using F = Computed<T>;
    EACH_UNITS(N) {
        const Units<T, N> at(index, args.units);
        F x[N];
        at.template load<T>(args.sums, 1, 0, x);
        at.add_bias(args.bias, 0, x);
#pragma unroll
        for (int i = 0; i < N; i++) x[i] = !args.relu ? tanh(x[i]) : x[i] < F(0) ? F(0) : x[i];  // a NaN stays one
        at.template store<T>(args.h, 1, 0, x);
    }
}

struct RnnGradArgs {
    const void* h;   // (B, H), after the step
    const void* dh;  // (B, H), from the step behind this one
    const void* g;   // (B, H), from outside
    void* d;         // (B, H), of the sums
    int batch, units;
    int relu;
};

template <class T, int N>
__global__ void __launch_bounds__(256) rnn_grad_step(const __grid_constant__ RnnGradArgs args) {
    using F = Computed<T>;
    EACH_UNITS(N) {
        const Units<T, N> at(index, args.units);
        F h[N], d[N];
        at.template load<T>(args.h, 1, 0, h);
        at.template load<T>(args.dh, 1, 0, d);
        at.template add<T>(args.g, 1, 0, d);
#pragma unroll
        for (int i = 0; i < N; i++) d[i] *= !args.relu ? F(1) - h[i] * h[i] : h[i] > F(0) ? F(1) : F(0);
        at.template store<T>(args.d, 1, 0, d);
    }
}
