// Random numbers and dropout. A thread takes whole blocks of a draw (philox.cuh), and makes of each the numbers that
// gpunet/ops/random.py says: the same bits as on the CPU, whatever the grid.
//
//   uniform, integers, bernoulli   8 numbers of a block, or 4 of 53 bits, scaled as NumPy does it, step by step
//   normal                         4 numbers, by the transform of Box and Muller in float64
//   dropout                        reads 8 elements and writes them; the mask is drawn again for the gradient, and never
//                                  stored. NaN and infinity times zero is NaN, as in the reference.
//   random_keys                    the 53 bits that a permutation sorts by
//
// Bytes: each result is written once; dropout reads its input once.
#include "array.cuh"
#include "philox.cuh"

// Adjacent results of a block: the first `count` of N, by accesses of up to 16 bytes where they are aligned.
template <class T, int N>
DEVICE void store_block(void* array, long long start, long long size, const Computed<T> (&y)[N]) {
    constexpr int WIDTH = sizeof(Stored<T>) * N > 16 ? 16 / sizeof(Stored<T>) : N;
    Stored<T>* to = static_cast<Stored<T>*>(array) + start;
    const bool aligned = reinterpret_cast<unsigned long long>(to) % (WIDTH * sizeof(Stored<T>)) == 0;
#pragma unroll
    for (int i = 0; i < N; i += WIDTH) {
        Computed<T> part[WIDTH];
#pragma unroll
        for (int j = 0; j < WIDTH; j++) part[j] = y[i + j];
        const long long left = size - start - i;
        if (left > 0) store_vector<T, WIDTH>(to + i, aligned && left >= WIDTH, static_cast<int>(min(left, 16ll)), part);
    }
}

struct UniformArgs {
    Draw draw;
    const unsigned long long* more;  // see first_block
    void* to;
    long long size;
    double low, range, most;  // numbers of the result's type
    int scaled;               // whether they are not 0, 1
};

// Rounded to T, as every step is.
template <class T>
DEVICE Computed<T> rounded(Computed<T> x) { return Number<T>::load(Number<T>::store(x)); }

DEVICE float product(float a, float b) { return __fmul_rn(a, b); }  // never part of a fused multiply-add
DEVICE double product(double a, double b) { return __dmul_rn(a, b); }
DEVICE float total(float a, float b) { return __fadd_rn(a, b); }
DEVICE double total(double a, double b) { return __dadd_rn(a, b); }

template <class T>
__global__ void __launch_bounds__(256) uniform(const __grid_constant__ UniformArgs args) {
    using F = Computed<T>;
    constexpr int N = sizeof(Stored<T>) == 8 ? 4 : 8;
    const F low = static_cast<F>(args.low), range = static_cast<F>(args.range), most = static_cast<F>(args.most);
    const unsigned long long first = first_block(args.more);
    for (long long block = blockIdx.x * 256ll + threadIdx.x; block * N < args.size; block += gridDim.x * 256ll) {
        const RandomBlock bits = random_block(args.draw, first + block);
        F u[N];
#pragma unroll
        for (int i = 0; i < N; i++) {
            if constexpr (N == 4)
                u[i] = bits.uniform_double(i);
            else
                u[i] = bits.uniform(i);
            if constexpr (sizeof(Stored<T>) == 2) u[i] = floorf(u[i] * 2048.0f) * (1.0f / 2048.0f);
            if (args.scaled) {
                u[i] = rounded<T>(total(rounded<T>(product(u[i], range)), low));
                u[i] = u[i] > most ? most : u[i];
            }
        }
        store_block<T, N>(args.to, block * N, args.size, u);
    }
}

// z * range + low, for standard normal z; `most` is not used.
template <class T>
__global__ void __launch_bounds__(256) normal(const __grid_constant__ UniformArgs args) {
    const unsigned long long first = first_block(args.more);
    for (long long block = blockIdx.x * 256ll + threadIdx.x; block * 4 < args.size; block += gridDim.x * 256ll) {
        const RandomBlock bits = random_block(args.draw, first + block);
        Computed<T> z[4];
#pragma unroll
        for (int i = 0; i < 4; i += 2) {
            const double radius = sqrt(-2.0 * log1p(-bits.uniform_double(i)));
            const double angle = 6.283185307179586 * bits.uniform_double(i + 1);
            double sine, cosine;
            sincos(angle, &sine, &cosine);
            z[i] = static_cast<Computed<T>>(total(product(radius * cosine, args.range), args.low));
            z[i + 1] = static_cast<Computed<T>>(total(product(radius * sine, args.range), args.low));
        }
        store_block<T, 4>(args.to, block * 4, args.size, z);
    }
}

struct IntegersArgs {
    Draw draw;
    const unsigned long long* more;  // see first_block
    void* to;
    long long size, low;
    double range;  // how many there are to choose among
};

template <class T>
__global__ void __launch_bounds__(256) integers(const __grid_constant__ IntegersArgs args) {
    const unsigned long long first = first_block(args.more);
    for (long long block = blockIdx.x * 256ll + threadIdx.x; block * 4 < args.size; block += gridDim.x * 256ll) {
        const RandomBlock bits = random_block(args.draw, first + block);
        Computed<T> y[4];
#pragma unroll
        for (int i = 0; i < 4; i++)
            y[i] = static_cast<Computed<T>>(args.low + static_cast<long long>(bits.uniform_double(i) * args.range));
        store_block<T, 4>(args.to, block * 4, args.size, y);
    }
}

template <class T>
__global__ void __launch_bounds__(256) random_keys(const __grid_constant__ IntegersArgs args) {
    const unsigned long long first = first_block(args.more);
    for (long long block = blockIdx.x * 256ll + threadIdx.x; block * 4 < args.size; block += gridDim.x * 256ll) {
        const RandomBlock bits = random_block(args.draw, first + block);
        T y[4];
#pragma unroll
        for (int i = 0; i < 4; i++) y[i] = bits.at[i] >> 11;
        store_block<T, 4>(args.to, block * 4, args.size, y);
    }
}

struct DropoutArgs {
    Draw draw;
    const unsigned long long* more;  // see first_block
    const void* from;
    void* to;
    long long size;
    double scale;
    float p;
};

// Whether each uniform number is below p.
template <class T>
__global__ void __launch_bounds__(256) bernoulli(const __grid_constant__ DropoutArgs args) {
    const unsigned long long first = first_block(args.more);
    for (long long block = blockIdx.x * 256ll + threadIdx.x; block * 8 < args.size; block += gridDim.x * 256ll) {
        const RandomBlock bits = random_block(args.draw, first + block);
        T y[8];
#pragma unroll
        for (int i = 0; i < 8; i++) y[i] = bits.uniform(i) < args.p;
        store_block<T, 8>(args.to, block * 8, args.size, y);
    }
}

// x * (u >= p) * scale.
template <class T>
__global__ void __launch_bounds__(256) dropout(const __grid_constant__ DropoutArgs args) {
    constexpr int WIDTH = 16 / sizeof(Stored<T>);
    const Computed<T> scale = static_cast<Computed<T>>(args.scale);
    const unsigned long long first = first_block(args.more);
    const bool aligned = reinterpret_cast<unsigned long long>(args.from) % 16 == 0;
    for (long long block = blockIdx.x * 256ll + threadIdx.x; block * 8 < args.size; block += gridDim.x * 256ll) {
        Computed<T> x[8];
#pragma unroll
        for (int i = 0; i < 8; i += WIDTH) {
            Computed<T> part[WIDTH];
            const long long left = args.size - block * 8 - i;
            load_vector<T, WIDTH>(static_cast<const Stored<T>*>(args.from) + block * 8 + i, aligned && left >= WIDTH,
                                  static_cast<int>(max(0ll, min(left, 8ll))), part);
#pragma unroll
            for (int j = 0; j < WIDTH; j++) x[i + j] = part[j];
        }
        const RandomBlock bits = random_block(args.draw, first + block);
#pragma unroll
        for (int i = 0; i < 8; i++) x[i] *= bits.uniform(i) >= args.p ? scale : Computed<T>(0);
        store_block<T, 8>(args.to, block * 8, args.size, x);
    }
}
