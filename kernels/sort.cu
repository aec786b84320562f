// Stable sorting by a key of unsigned bits, four of them at a time from the lowest (radix sort, "least significant digit
// first"): positions move, and their keys with them. What comes first stays first among equals, so that whatever is
// computed along sorted positions is computed in the same order every time.
//
//   sort_keys       numbers as unsigned ones that are ordered alike; NaN behind everything
//   line_keys       which line of `length` elements each sorted position is in: sorting by that too sorts every line
//   radix_count     how often each digit occurs in each tile of 1024
//   radix_scatter   with the running sums of these counts (kernels/reduce.cu) each element knows its place
//
// A pass reads keys twice and positions once, and writes both once.
#include "array.cuh"

DEVICE unsigned long long bits_of(half x) { return x.bits; }
DEVICE unsigned long long bits_of(bfloat16 x) { return x.bits; }
DEVICE unsigned long long bits_of(float x) { return __float_as_uint(x); }
DEVICE unsigned long long bits_of(double x) { return static_cast<unsigned long long>(__double_as_longlong(x)); }
template <class T>
DEVICE unsigned long long bits_of(T x) {
    return static_cast<unsigned long long>(x);
}

struct SortKeysArgs {
    const void* from;
    void* to;
    Axes axes;  // in the order in which positions are counted
    long long strides[MOST_AXES];
    long long count;
    int descending;
};

template <class T, class Key>
__global__ void __launch_bounds__(256) sort_keys(const __grid_constant__ SortKeysArgs args) {
    using F = Computed<T>;
    constexpr int BITS = 8 * sizeof(Stored<T>);
    constexpr unsigned long long TOP = 1ull << (BITS - 1), ALL = TOP | (TOP - 1);
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < args.count; i += gridDim.x * 256ll) {
        const Stored<T> value = static_cast<const Stored<T>*>(args.from)[args.axes.offset(i, args.strides)];
        unsigned long long key = bits_of(value);
        if constexpr (F(0.5) != F(0) && BITS > 8) {  // floating-point
            const F number = Number<T>::load(value);
            if (number == F(0)) key = 0;  // of either sign
            key = number != number ? ALL : key & TOP ? ~key : key | TOP;
        } else if constexpr (F(-1) < F(0)) {
            key ^= TOP;
        }
        static_cast<Key*>(args.to)[i] = static_cast<Key>((args.descending ? ~key : key) & ALL);
    }
}

struct LineKeysArgs {
    const int* positions;
    unsigned* to;
    long long count;
    int length;
};

template <class Key>
__global__ void __launch_bounds__(256) line_keys(const __grid_constant__ LineKeysArgs args) {
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < args.count; i += gridDim.x * 256ll)
        args.to[i] = static_cast<Key>(args.positions[i] / args.length);
}

// Of sorted positions, those within their lines.
struct WithinArgs {
    const int* positions;
    void* to;
    Axes axes;  // of the result, whose lines are along the last one
    long long strides[MOST_AXES];
    long long count;
    int length;
};

template <class T>
__global__ void __launch_bounds__(256) within_lines(const __grid_constant__ WithinArgs args) {
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < args.count; i += gridDim.x * 256ll)
        static_cast<T*>(args.to)[args.axes.offset(i, args.strides)] = args.positions[i] % args.length;
}

enum { DIGITS = 16, EACH = 4, TILE = 256 * EACH };

struct RadixArgs {
    const void* keys;
    const int* positions;  // null: 0, 1, 2 ...
    const long long* sums;  // for each digit and tile, how many elements go before its first; for radix_scatter
    int* counts;            // (digits, tiles), for radix_count
    void* keys_to;
    int* positions_to;
    long long count;
    int shift, tiles;
};

template <class Key>
DEVICE int digit_of(Key key, int shift) {
    return static_cast<int>(key >> shift) & (DIGITS - 1);
}

template <class Key>
__global__ void __launch_bounds__(256) radix_count(const __grid_constant__ RadixArgs args) {
    __shared__ unsigned short counts[DIGITS][256];
    const Key* keys = static_cast<const Key*>(args.keys);
    for (int d = 0; d < DIGITS; d++) counts[d][threadIdx.x] = 0;
    const long long first = blockIdx.x * 1ll * TILE;
    for (int j = 0; j < EACH; j++) {
        const long long i = first + j * 256 + threadIdx.x;
        if (i < args.count) counts[digit_of(keys[i], args.shift)][threadIdx.x]++;
    }
    __syncthreads();
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int d = warp; d < DIGITS; d += 8) {
        int sum = 0;
        for (int t = lane; t < 256; t += 32) sum += counts[d][t];
        sum = reduce_lanes<Add>(sum);
        if (lane == 0) args.counts[d * args.tiles + blockIdx.x] = sum;
    }
}

template <class Key>
__global__ void __launch_bounds__(256) radix_scatter(const __grid_constant__ RadixArgs args) {
    __shared__ unsigned short counts[DIGITS][256];  // of each thread's digits; then of all before them
    __shared__ int ends[8];
    const Key* keys = static_cast<const Key*>(args.keys);
    const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
    for (int d = 0; d < DIGITS; d++) counts[d][threadIdx.x] = 0;
    const long long first = blockIdx.x * 1ll * TILE + threadIdx.x * EACH;
    Key key[EACH];
    int before[EACH];  // how many of the thread's own elements of the same digit come first
    for (int j = 0; j < EACH; j++) {
        if (first + j >= args.count) continue;
        key[j] = keys[first + j];
        before[j] = counts[digit_of(key[j], args.shift)][threadIdx.x]++;
    }
    __syncthreads();
    // Running sums over digits and, for each, over threads: a thread has 16 neighbours of one digit.
    unsigned short(&mine)[16] = *reinterpret_cast<unsigned short(*)[16]>(&counts[threadIdx.x / 16][threadIdx.x % 16 * 16]);
    int sum = 0;
    for (int t = 0; t < 16; t++) sum += mine[t];
    int upto = sum;
    for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(0xffffffffu, upto, step);
        if (lane >= step) upto += other;
    }
    if (lane == 31) ends[warp] = upto;
    __syncthreads();
    int running = upto - sum;
    for (int w = 0; w < warp; w++) running += ends[w];
    for (int t = 0; t < 16; t++) {
        const int own = mine[t];
        mine[t] = static_cast<unsigned short>(running);
        running += own;
    }
    __syncthreads();
    for (int j = 0; j < EACH; j++) {
        if (first + j >= args.count) continue;
        const int digit = digit_of(key[j], args.shift);
        const int within = counts[digit][threadIdx.x] - counts[digit][0] + before[j];
        const long long to = args.sums[digit * args.tiles + blockIdx.x] + within;
        static_cast<Key*>(args.keys_to)[to] = key[j];
        args.positions_to[to] = args.positions ? args.positions[first + j] : static_cast<int>(first + j);
    }
}
