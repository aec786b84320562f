// Pooling: the largest element, the sum or the norm of each window, and the way back.
//
// Arrays are (images, three spatial axes, channels) in memory, channels adjacent; axes that are missing have length 1. An
// array whose rows are adjacent instead is, to these kernels, one of as many images as it has planes, with one channel.
// A thread has VECTOR adjacent channels of one place, moved by one instruction of up to 16 bytes, and threads of a block
// have neighbouring places: what windows share, and on the way back windows' results that several places see, is read
// from DRAM once and then from the caches. Nothing is padded: a place outside of the input is not looked at.
//
//   pool           A thread has a window. Of large windows, PARTS threads have every PARTS-th place each, and the first
//                  of them joins what they found, in their order.
//   pool_back      A thread has a place of the input and gathers what the windows that see it have for it, in the order
//                  of the windows: no atomics, each element is written once.
//   pool_pick      reads, for each window, the place whose number it is given: what pool_back's derivative is.
//   pool_indices   turns numbers of places in windows into places of the input.
//   pool_claim,    put each element at the place that its index names. The last of those that want the same one gets it,
//   pool_settle    which is found with an atomic maximum of their positions: of integers, so in any order the same.
//
// Where a maximum was found is its number within the window, in C order, first place first: a byte where windows have no
// more than 255 places, an int otherwise.
//
// Bytes from and to DRAM over the least that must be moved: 1.0 for all but pool_claim and pool_settle, 4 bytes per
// element of the larger array more twice. Windows that overlap, or lie above each other, meet in the caches.
#include "array.cuh"

// One axis of the input, and the windows along it. With stride 0 they are adaptive: window i is from i * in / out, rounded
// down, to (i + 1) * in / out, rounded up, and `kernel` is the length of the longest;
// (in + 1) * (out + 1) is less than 2^31.
struct PoolAxis {
    int in, out, kernel, stride, padding, dilation;

    static DEVICE int quotient(unsigned a, unsigned b) { return static_cast<int>(a / b); }

    DEVICE int begin(int window) const {
        return stride ? window * stride - padding : quotient(window * in, out);
    }
    // How many places the window has, inside or not.
    DEVICE int length(int window) const {
        return stride ? kernel : quotient((window + 1) * in + out - 1, out) - begin(window);
    }
    // How many of them, next to each other, are inside, or inside of the padded input.
    DEVICE int elements(int window, bool padded) const {
        const int start = begin(window), end = start + length(window);
        return padded ? min(end, in + padding) - start : min(end, in) - max(start, 0);
    }
    // The first and the last window that may have the place `at`.
    DEVICE int lowest(int at) const {
        if (!stride) return quotient(at * out, in);
        const int over = at + padding - dilation * (kernel - 1);
        return over > 0 ? (over + stride - 1) / stride : 0;
    }
    DEVICE int highest(int at) const {
        if (!stride) return quotient((at + 1) * out - 1, in);
        return min((at + padding) / stride, out - 1);
    }
    // Which place of a window `at` is; -1 if it is none.
    DEVICE int number(int at, int window) const {
        const int away = at - begin(window);
        return dilation == 1 ? away : away % dilation ? -1 : away / dilation;
    }
};

enum Division { WHOLE, INSIDE, PADDED };  // what a sum is divided by: nothing, or how many elements are there

struct PoolArgs {
    const void* x;        // of the input's shape
    const void* y;        // of the output's shape: on the way back, what came out where that is needed
    const void* g;        // the output's gradient
    const void* numbers;  // of the maxima
    void* to;
    void* to_numbers;
    PoolAxis axes[3];
    int channels;        // VECTOR of them counted as one
    int parts_adjacent;  // whether the threads of a window are neighbours, which is so where there is one channel
    int division;
    unsigned count;  // of results, VECTOR counted as one; less than 2^31
    double factor;   // what sums are multiplied by
    double order;    // of norms
};

struct PoolPlace {
    long long image;
    int at[3], channel;

    // Of element `index` of an array whose axes have these lengths.
    DEVICE PoolPlace(unsigned index, int length0, int length1, int length2, int channels) {
        channel = split(index, channels);
        at[2] = split(index, length2);
        at[1] = split(index, length1);
        at[0] = split(index, length0);
        image = index;
    }

    static DEVICE int split(unsigned& index, unsigned length) {
        const unsigned next = index / length, rest = index - next * length;
        index = next;
        return static_cast<int>(rest);
    }
};

DEVICE PoolPlace window_of(const PoolArgs& args, unsigned index) {
    return {index, args.axes[0].out, args.axes[1].out, args.axes[2].out, args.channels};
}

// Which element a place of the input, or a window, is, VECTOR of them counted as one.
DEVICE long long input_offset(const PoolArgs& args, const PoolPlace& p, int d, int h, int w) {
    return (((p.image * args.axes[0].in + d) * args.axes[1].in + h) * args.axes[2].in + w) * args.channels + p.channel;
}
DEVICE long long window_offset(const PoolArgs& args, const PoolPlace& p, int d, int h, int w) {
    return (((p.image * args.axes[0].out + d) * args.axes[1].out + h) * args.axes[2].out + w) * args.channels + p.channel;
}

// What the sum of a window is multiplied by.
template <class F>
DEVICE F share_of(const PoolArgs& args, int d, int h, int w) {
    if (args.division == WHOLE) return static_cast<F>(args.factor);
    const bool padded = args.division == PADDED;
    const F elements = static_cast<F>(args.axes[0].elements(d, padded)) * static_cast<F>(args.axes[1].elements(h, padded)) *
                       static_cast<F>(args.axes[2].elements(w, padded));
    return static_cast<F>(args.factor) / elements;
}

// --- what is found out about a window -------------------------------------------------------------------------------

struct Nothing {};

// The largest element and, unless N is Nothing, its number: the first that is the largest, or the last NaN.
template <class T, int VECTOR, class N>
struct Largest {
    using F = Computed<T>;
    F value[VECTOR];
    int number[VECTOR];

    DEVICE void start() {
#pragma unroll
        for (int i = 0; i < VECTOR; i++) value[i] = F(0), number[i] = -1;
    }
    DEVICE void take(const PoolArgs&, const F (&x)[VECTOR], int at) {
#pragma unroll
        for (int i = 0; i < VECTOR; i++) {
            if (number[i] < 0 || x[i] > value[i] || x[i] != x[i]) {
                value[i] = x[i];
                number[i] = at;
            }
        }
    }
    DEVICE void join(const Largest& other) {
#pragma unroll
        for (int i = 0; i < VECTOR; i++) {
            const F x = other.value[i];
            const int at = other.number[i];
            const bool nan = x != x, was_nan = value[i] != value[i];
            const bool instead = nan ? !was_nan || at > number[i] : x > value[i] || (x == value[i] && at < number[i]);
            if (at >= 0 && (number[i] < 0 || instead)) {
                value[i] = x;
                number[i] = at;
            }
        }
    }
    DEVICE void store(const PoolArgs& args, long long at, F) const {
        store_vector<T, VECTOR>(static_cast<Stored<T>*>(args.to) + at * VECTOR, true, VECTOR, value);
        store_numbers(static_cast<N*>(args.to_numbers) + at * VECTOR);
    }
    DEVICE void store_numbers(Nothing*) const {}
    template <class M>
    DEVICE void store_numbers(M* to) const {
        Vector<M, VECTOR> v;
#pragma unroll
        for (int i = 0; i < VECTOR; i++) v.at[i] = static_cast<M>(number[i]);
        *reinterpret_cast<Vector<M, VECTOR>*>(to) = v;
    }
};

template <class T, int VECTOR>
struct Total {
    using F = Computed<T>;
    F value[VECTOR];

    DEVICE void start() {
#pragma unroll
        for (int i = 0; i < VECTOR; i++) value[i] = F(0);
    }
    DEVICE void take(const PoolArgs&, const F (&x)[VECTOR], int) {
#pragma unroll
        for (int i = 0; i < VECTOR; i++) value[i] += x[i];
    }
    DEVICE void join(const Total& other) {
#pragma unroll
        for (int i = 0; i < VECTOR; i++) value[i] += other.value[i];
    }
    DEVICE void store(const PoolArgs& args, long long at, F share) const {
        F y[VECTOR];
#pragma unroll
        for (int i = 0; i < VECTOR; i++) y[i] = value[i] * share;
        store_vector<T, VECTOR>(static_cast<Stored<T>*>(args.to) + at * VECTOR, true, VECTOR, y);
    }
};

// The norm of order args.order.
template <class T, int VECTOR>
struct Norm : Total<T, VECTOR> {
    using F = Computed<T>;
    using Total<T, VECTOR>::value;

    DEVICE void take(const PoolArgs& args, const F (&x)[VECTOR], int) {
#pragma unroll
        for (int i = 0; i < VECTOR; i++)
            value[i] += args.order == 2 ? x[i] * x[i] : pow(x[i], static_cast<F>(args.order));
    }
    DEVICE void store(const PoolArgs& args, long long at, F share) const {
        F y[VECTOR];
#pragma unroll
        for (int i = 0; i < VECTOR; i++) {
            const F sum = value[i] * share;
            y[i] = args.order == 2 ? sqrt(sum) : pow(sum, static_cast<F>(1 / args.order));
        }
        store_vector<T, VECTOR>(static_cast<Stored<T>*>(args.to) + at * VECTOR, true, VECTOR, y);
    }
};

// WIDTH: how long windows are along the last axis; 0 for any length.
template <class T, class Rule, int VECTOR, int WIDTH, int PARTS>
__global__ void __launch_bounds__(256, 1) pool(const __grid_constant__ PoolArgs args) {
    using F = Computed<T>;
    constexpr int WINDOWS = 256 / PARTS;
    const PoolAxis &depth = args.axes[0], &height = args.axes[1], &width = args.axes[2];
    const int slot = args.parts_adjacent ? threadIdx.x / PARTS : threadIdx.x % WINDOWS;
    const int part = args.parts_adjacent ? threadIdx.x % PARTS : threadIdx.x / WINDOWS;
    for (unsigned first = blockIdx.x * WINDOWS; first < args.count; first += gridDim.x * WINDOWS) {
        const unsigned index = first + slot;
        const PoolPlace p = window_of(args, index);
        const int top = depth.begin(p.at[0]), up = height.begin(p.at[1]), left = width.begin(p.at[2]);
        const int deep = depth.length(p.at[0]), high = height.length(p.at[1]), wide = width.length(p.at[2]);
        const Stored<T>* x = static_cast<const Stored<T>*>(args.x);
        Rule rule;
        rule.start();
        if (PARTS == 1 && index < args.count) {
            for (int a = 0; a < deep; a++) {
                const int d = top + a * depth.dilation;
                if (static_cast<unsigned>(d) >= static_cast<unsigned>(depth.in)) continue;
                for (int b = 0; b < high; b++) {
                    const int h = up + b * height.dilation;
                    if (static_cast<unsigned>(h) >= static_cast<unsigned>(height.in)) continue;
                    const Stored<T>* row = x + input_offset(args, p, d, h, 0) * VECTOR;
                    const int number = (a * height.kernel + b) * width.kernel;
#pragma unroll
                    for (int c = 0; c < (WIDTH ? WIDTH : wide); c++) {
                        const int w = left + c * width.dilation;
                        if (static_cast<unsigned>(w) >= static_cast<unsigned>(width.in)) continue;
                        F v[VECTOR];
                        load_vector<T, VECTOR>(row + 1ll * w * args.channels * VECTOR, true, VECTOR, v);
                        rule.take(args, v, number + c);
                    }
                }
            }
        }
        if constexpr (PARTS > 1) {
            __shared__ Rule found[256];
            if (index < args.count) {
                for (int k = part; k < deep * high * wide; k += PARTS) {
                    const int c = k % wide, b = k / wide % high, a = k / wide / high;
                    const int d = top + a * depth.dilation, h = up + b * height.dilation, w = left + c * width.dilation;
                    if (static_cast<unsigned>(d) >= static_cast<unsigned>(depth.in)) continue;
                    if (static_cast<unsigned>(h) >= static_cast<unsigned>(height.in)) continue;
                    if (static_cast<unsigned>(w) >= static_cast<unsigned>(width.in)) continue;
                    F v[VECTOR];
                    load_vector<T, VECTOR>(x + input_offset(args, p, d, h, w) * VECTOR, true, VECTOR, v);
                    rule.take(args, v, (a * height.kernel + b) * width.kernel + c);
                }
            }
            found[part * WINDOWS + slot] = rule;
            __syncthreads();
            if (part == 0)
                for (int other = 1; other < PARTS; other++) rule.join(found[other * WINDOWS + slot]);
            __syncthreads();
        }
        if (part == 0 && index < args.count) rule.store(args, index, share_of<F>(args, p.at[0], p.at[1], p.at[2]));
    }
}

// --- the way back ---------------------------------------------------------------------------------------------------

// The gradient of maxima goes to the places whose numbers are given. With RELU, where y is positive only.
template <class T, int VECTOR, class N, bool RELU>
struct ToLargest {
    using F = Computed<T>;
    static DEVICE void add(const PoolArgs& args, long long at, int number, F, F (&sum)[VECTOR]) {
        const N* from = static_cast<const N*>(args.numbers) + at * VECTOR;
        const Vector<N, VECTOR> numbers = *reinterpret_cast<const Vector<N, VECTOR>*>(from);
        bool any = false;
#pragma unroll
        for (int i = 0; i < VECTOR; i++) any = any || static_cast<int>(numbers.at[i]) == number;
        if (!any) return;
        F g[VECTOR], y[VECTOR];
        load_vector<T, VECTOR>(static_cast<const Stored<T>*>(args.g) + at * VECTOR, true, VECTOR, g);
        if (RELU) load_vector<T, VECTOR>(static_cast<const Stored<T>*>(args.y) + at * VECTOR, true, VECTOR, y);
#pragma unroll
        for (int i = 0; i < VECTOR; i++)
            if (static_cast<int>(numbers.at[i]) == number && !(RELU && !(y[i] > 0))) sum[i] += g[i];
    }
    static DEVICE void finish(const PoolArgs&, long long, F (&)[VECTOR]) {}
};

// The gradient of sums goes to all places.
template <class T, int VECTOR>
struct ToAll {
    using F = Computed<T>;
    static DEVICE void add(const PoolArgs& args, long long at, int, F share, F (&sum)[VECTOR]) {
        F g[VECTOR];
        load_vector<T, VECTOR>(static_cast<const Stored<T>*>(args.g) + at * VECTOR, true, VECTOR, g);
#pragma unroll
        for (int i = 0; i < VECTOR; i++) sum[i] += g[i] * share;
    }
    static DEVICE void finish(const PoolArgs&, long long, F (&)[VECTOR]) {}
};

// The gradient of norms y: x^(p - 1) times the sum of g * y^(1 - p), without windows whose norm is zero.
template <class T, int VECTOR>
struct ToNorm {
    using F = Computed<T>;
    static DEVICE void add(const PoolArgs& args, long long at, int, F share, F (&sum)[VECTOR]) {
        F g[VECTOR], y[VECTOR];
        load_vector<T, VECTOR>(static_cast<const Stored<T>*>(args.g) + at * VECTOR, true, VECTOR, g);
        load_vector<T, VECTOR>(static_cast<const Stored<T>*>(args.y) + at * VECTOR, true, VECTOR, y);
#pragma unroll
        for (int i = 0; i < VECTOR; i++) {
            const F slope = args.order == 2 ? F(1) / y[i] : pow(y[i], static_cast<F>(1 - args.order));
            if (y[i] != 0) sum[i] += g[i] * slope * share;
        }
    }
    static DEVICE void finish(const PoolArgs& args, long long at, F (&sum)[VECTOR]) {
        F x[VECTOR];
        load_vector<T, VECTOR>(static_cast<const Stored<T>*>(args.x) + at * VECTOR, true, VECTOR, x);
#pragma unroll
        for (int i = 0; i < VECTOR; i++)
            sum[i] *= args.order == 2 ? x[i] : pow(x[i], static_cast<F>(args.order - 1));
    }
};

template <class T, class Rule, int VECTOR>
__global__ void __launch_bounds__(256, 1) pool_back(const __grid_constant__ PoolArgs args) {
    using F = Computed<T>;
    const PoolAxis &depth = args.axes[0], &height = args.axes[1], &width = args.axes[2];
    for (unsigned i = blockIdx.x * 256 + threadIdx.x; i < args.count; i += gridDim.x * 256) {
        const PoolPlace p(i, depth.in, height.in, width.in, args.channels);
        const int top = depth.highest(p.at[0]), up = height.highest(p.at[1]), right = width.highest(p.at[2]);
        F sum[VECTOR];
#pragma unroll
        for (int j = 0; j < VECTOR; j++) sum[j] = F(0);
        for (int d = depth.lowest(p.at[0]); d <= top; d++) {
            const int a = depth.number(p.at[0], d);
            if (a < 0) continue;
            for (int h = height.lowest(p.at[1]); h <= up; h++) {
                const int b = height.number(p.at[1], h);
                if (b < 0) continue;
                for (int w = width.lowest(p.at[2]); w <= right; w++) {
                    const int c = width.number(p.at[2], w);
                    if (c < 0) continue;
                    const int number = (a * height.kernel + b) * width.kernel + c;
                    Rule::add(args, window_offset(args, p, d, h, w), number, share_of<F>(args, d, h, w), sum);
                }
            }
        }
        Rule::finish(args, i, sum);
        store_vector<T, VECTOR>(static_cast<Stored<T>*>(args.to) + i * VECTOR, true, VECTOR, sum);
    }
}

// --- by numbers and by indices --------------------------------------------------------------------------------------

// The place of window p that has the number `number`, as a place of the image. Of one outside, `inside` says so; of one
// before the image's first along an axis, the place is the first of the window that is not.
DEVICE long long place_in_window(const PoolArgs& args, const PoolPlace& p, int number, bool& inside) {
    long long place = 0;
    int weight = args.axes[1].kernel * args.axes[2].kernel;
    inside = true;
#pragma unroll
    for (int axis = 0; axis < 3; axis++) {
        const PoolAxis& a = args.axes[axis];
        const int k = number / weight;
        int at = a.begin(p.at[axis]) + k * a.dilation;
        inside = inside && at >= 0 && at < a.in;
        if (at < 0) at += (a.dilation - 1 - at) / a.dilation * a.dilation;
        place = place * a.in + at;
        number -= k * weight;
        if (axis < 2) weight /= args.axes[axis + 1].kernel;
    }
    return place;
}

template <class T, class N>
__global__ void __launch_bounds__(256) pool_pick(const __grid_constant__ PoolArgs args) {
    const long long size = 1ll * args.axes[0].in * args.axes[1].in * args.axes[2].in;
    for (unsigned i = blockIdx.x * 256 + threadIdx.x; i < args.count; i += gridDim.x * 256) {
        const PoolPlace p = window_of(args, i);
        bool inside;
        const long long place = place_in_window(args, p, static_cast<const N*>(args.numbers)[i], inside);
        Stored<T> found = Number<T>::store(Computed<T>(0));
        if (inside)
            found = static_cast<const Stored<T>*>(args.x)[(p.image * size + place) * args.channels + p.channel];
        static_cast<Stored<T>*>(args.to)[i] = found;
    }
}

template <class N>
__global__ void __launch_bounds__(256) pool_indices(const __grid_constant__ PoolArgs args) {
    for (unsigned i = blockIdx.x * 256 + threadIdx.x; i < args.count; i += gridDim.x * 256) {
        bool inside;
        static_cast<long long*>(args.to)[i] =
            place_in_window(args, window_of(args, i), static_cast<const N*>(args.numbers)[i], inside);
    }
}

struct UnpoolArgs {
    const void* x;             // (images, from, channels)
    const long long* indices;  // of the same shape, from 0 up to `to`
    int* owners;               // (images, to, channels): which of `from` has the place; -1 for none
    void* y;                   // of that shape
    unsigned from, to, channels;
    unsigned count;  // of elements of x for pool_claim, of y for pool_settle

    static constexpr int NO_PLACE = 0x7fffffff;
};

template <class T>
__global__ void __launch_bounds__(256) pool_claim(const __grid_constant__ UnpoolArgs args) {
    for (unsigned i = blockIdx.x * 256 + threadIdx.x; i < args.count; i += gridDim.x * 256) {
        const unsigned channel = i % args.channels, at = i / args.channels % args.from;
        const long long image = i / args.channels / args.from, index = args.indices[i];
        const bool inside = index >= 0 && index < args.to;
        int* owner = args.owners + (image * args.to + (inside ? index : 0)) * args.channels + channel;
        atomicMax(owner, inside ? static_cast<int>(at) : args.NO_PLACE);
    }
}

// An index outside makes the first element of its plane NaN, so that it cannot pass unnoticed.
template <class T>
__global__ void __launch_bounds__(256) pool_settle(const __grid_constant__ UnpoolArgs args) {
    using F = Computed<T>;
    for (unsigned i = blockIdx.x * 256 + threadIdx.x; i < args.count; i += gridDim.x * 256) {
        const unsigned channel = i % args.channels;
        const long long image = i / args.channels / args.to;
        const int owner = args.owners[i];
        Stored<T> y = Number<T>::store(F(0));
        if (owner == args.NO_PLACE)
            y = Number<T>::store(static_cast<F>(__int_as_float(0x7fc00000)));
        else if (owner >= 0)
            y = static_cast<const Stored<T>*>(args.x)[(image * args.from + owner) * args.channels + channel];
        static_cast<Stored<T>*>(args.y)[i] = y;
    }
}
