// Sums, means, extremes, their positions, variances over some axes, and running sums along one. The order in which
// elements meet is fixed by shapes, strides and the number of multiprocessors alone.
//
// The launching side (gpunet/ops/reduce_kernels.py) splits the axes into those that are kept and those that are reduced,
// merges each where memory allows, and walks both in the order of memory.
//
//   reduce_rows     Elements that are reduced together are adjacent, or nothing is: GROUP threads share an output.
//   reduce_columns  Outputs are adjacent: a thread has N of them, neighbouring threads the next; several rows of threads
//                   share the reduced elements and meet in shared memory.
//   reduce_parts    Where there are fewer outputs than the device needs blocks, each is reduced in parts by the kernels
//                   above, which leave their states; this one puts these together.
//   scan_rows       Running sums along adjacent elements: a block for each line, a tile of 1024 at a time.
//   scan_lines      Along others: a thread for each line, neighbouring ones adjacent.
//
// Every element is read once, by accesses of up to 16 bytes. 16-bit types are added up in float.
#include "array.cuh"

// --- what is done: a State that elements are added to, that is merged with others, and that ends as a result -----------

template <class T>
DEVICE T least_value() {
    if constexpr (T(0.5) != T(0) && sizeof(T) > 1)  // a floating-point type
        return static_cast<T>(-__int_as_float(0x7f800000));
    else if constexpr (T(-1) < T(0))
        return static_cast<T>(-1ll << (8 * sizeof(T) - 1));
    else
        return T(0);
}

template <class T>
DEVICE T greatest_value() {
    if constexpr (T(0.5) != T(0) && sizeof(T) > 1)
        return static_cast<T>(__int_as_float(0x7f800000));
    else if constexpr (T(-1) < T(0))
        return static_cast<T>(~(-1ll << (8 * sizeof(T) - 1)));
    else
        return static_cast<T>(~0ull);
}

template <class C>
struct Sum {
    using Element = Computed<C>;
    using State = Element;
    static DEVICE State start() { return Element(0); }
    static DEVICE State add(State s, Element x, long long) { return s + x; }
    static DEVICE State merge(State a, State b) { return a + b; }
    static DEVICE Element end(State s, double) { return s; }
};

template <class C>
struct Mean : Sum<C> {
    static DEVICE Computed<C> end(Computed<C> s, double count) { return s / static_cast<Computed<C>>(count); }
};

template <class C>
struct Product {
    using Element = Computed<C>;
    using State = Element;
    static DEVICE State start() { return Element(1); }
    static DEVICE State add(State s, Element x, long long) { return s * x; }
    static DEVICE State merge(State a, State b) { return a * b; }
    static DEVICE Element end(State s, double) { return s; }
};

// NaN if there is one.
template <class C>
struct Maximum {
    using Element = Computed<C>;
    using State = Element;
    static DEVICE State start() { return least_value<Element>(); }
    static DEVICE State add(State s, Element x, long long) { return merge(s, x); }
    static DEVICE State merge(State a, State b) { return a != a || a > b ? a : b; }
    static DEVICE Element end(State s, double) { return s; }
};

template <class C>
struct Minimum {
    using Element = Computed<C>;
    using State = Element;
    static DEVICE State start() { return greatest_value<Element>(); }
    static DEVICE State add(State s, Element x, long long) { return merge(s, x); }
    static DEVICE State merge(State a, State b) { return a != a || a < b ? a : b; }
    static DEVICE Element end(State s, double) { return s; }
};

template <class C>
struct Any {
    using Element = Computed<C>;
    using State = int;
    static DEVICE State start() { return 0; }
    static DEVICE State add(State s, Element x, long long) { return s | (x != Element(0)); }
    static DEVICE State merge(State a, State b) { return a | b; }
    static DEVICE bool end(State s, double) { return s != 0; }
};

template <class C>
struct All {
    using Element = Computed<C>;
    using State = int;
    static DEVICE State start() { return 1; }
    static DEVICE State add(State s, Element x, long long) { return s & (x != Element(0)); }
    static DEVICE State merge(State a, State b) { return a & b; }
    static DEVICE bool end(State s, double) { return s != 0; }
};

template <class C>
struct Count {
    using Element = Computed<C>;
    using State = long long;
    static DEVICE State start() { return 0; }
    static DEVICE State add(State s, Element x, long long) { return s + (x != Element(0)); }
    static DEVICE State merge(State a, State b) { return a + b; }
    static DEVICE long long end(State s, double) { return s; }
};

// The first of the largest elements; a NaN is larger than all.
template <class C, bool LARGEST>
struct Position {
    using Element = Computed<C>;
    struct State {
        long long index;
        Element value;
    };
    static DEVICE State start() {
        return {0x7fffffffffffffffll, LARGEST ? least_value<Element>() : greatest_value<Element>()};
    }
    static DEVICE State add(State s, Element x, long long index) { return merge(s, {index, x}); }
    static DEVICE State merge(State a, State b) {
        const bool a_is_nan = a.value != a.value, b_is_nan = b.value != b.value;
        const bool same = a.value == b.value || (a_is_nan && b_is_nan);
        const bool better = a_is_nan || (!b_is_nan && (LARGEST ? a.value > b.value : a.value < b.value));
        return (same ? a.index < b.index : better) ? a : b;
    }
    static DEVICE long long end(State s, double) { return s.index; }
};
template <class C>
using ArgMax = Position<C, true>;
template <class C>
using ArgMin = Position<C, false>;

// Welford's recurrence, and Chan's for two states ("Updating formulae and a pairwise algorithm for computing sample
// variances", 1979). `end` is told n less the correction.
template <class C>
struct Variance {
    using Element = Computed<C>;
    struct State {
        Element count, mean, squares;
    };
    static DEVICE State start() { return {Element(0), Element(0), Element(0)}; }
    static DEVICE State add(State s, Element x, long long) {
        s.count += Element(1);
        const Element apart = x - s.mean;
        s.mean += apart / s.count;
        s.squares += apart * (x - s.mean);
        return s;
    }
    static DEVICE State merge(State a, State b) {
        if (b.count == Element(0)) return a;
        if (a.count == Element(0)) return b;
        const Element count = a.count + b.count, apart = b.mean - a.mean, share = b.count / count;
        return {count, a.mean + apart * share, a.squares + b.squares + apart * apart * a.count * share};
    }
    static DEVICE Element end(State s, double degrees) { return s.squares / static_cast<Element>(degrees); }
};

template <class C>
struct Deviation : Variance<C> {
    static DEVICE Computed<C> end(typename Variance<C>::State s, double degrees) {
        return ::sqrt(Variance<C>::end(s, degrees));
    }
};

// --- reductions ------------------------------------------------------------------------------------------------------

struct ReduceArgs {
    const void* from;
    void* to;  // results; states (parts, outputs) where there are several parts
    Axes kept, reduced;
    long long kept_strides[MOST_AXES], reduced_strides[MOST_AXES];
    long long outputs, length;  // how many there are, and of how many elements each
    long long part;             // how many elements a part has; a multiple of the vector
    double parameter;           // what `end` is told
    int parts, width;           // width: how many threads lie along the outputs, a power of two; for reduce_columns
};

// A State of another lane.
template <class State>
DEVICE State exchanged(State s, int flip) {
    static_assert(sizeof(State) % 4 == 0, "states are made of words");
    union Words {
        State state;
        unsigned at[sizeof(State) / 4];
        DEVICE Words() {}
    } words;
    words.state = s;
#pragma unroll
    for (unsigned& word : words.at) word = __shfl_xor_sync(0xffffffffu, word, flip);
    return words.state;
}

// A number smaller than a word travels as one.
template <>
DEVICE bool exchanged(bool s, int flip) { return __shfl_xor_sync(0xffffffffu, static_cast<int>(s), flip); }
template <>
DEVICE signed char exchanged(signed char s, int flip) { return __shfl_xor_sync(0xffffffffu, static_cast<int>(s), flip); }
template <>
DEVICE unsigned char exchanged(unsigned char s, int flip) {
    return __shfl_xor_sync(0xffffffffu, static_cast<int>(s), flip);
}
template <>
DEVICE short exchanged(short s, int flip) { return __shfl_xor_sync(0xffffffffu, static_cast<int>(s), flip); }
template <>
DEVICE unsigned short exchanged(unsigned short s, int flip) {
    return __shfl_xor_sync(0xffffffffu, static_cast<int>(s), flip);
}

// The states of GROUP adjacent threads put together, for the first of them at least.
template <class F, int GROUP>
DEVICE typename F::State gather(typename F::State s, typename F::State* slots) {
#pragma unroll
    for (int flip = (GROUP < 32 ? GROUP : 32) / 2; flip; flip /= 2) s = F::merge(s, exchanged(s, flip));
    if constexpr (GROUP > 32) {
        if (threadIdx.x % 32 == 0) slots[threadIdx.x / 32] = s;
        __syncthreads();
        s = slots[0];
        for (int warp = 1; warp < GROUP / 32; warp++) s = F::merge(s, slots[warp]);
        __syncthreads();  // the slots are used again
    }
    return s;
}

template <class F, class To>
DEVICE void finish(const ReduceArgs& args, long long output, typename F::State s) {
    if (args.parts > 1)
        static_cast<typename F::State*>(args.to)[blockIdx.y * args.outputs + output] = s;
    else
        static_cast<Stored<To>*>(args.to)[output] =
            Number<To>::store(static_cast<Computed<To>>(F::end(s, args.parameter)));
}

// A block has 256 / GROUP outputs at a time; blockIdx.y is the part.
template <class F, class To, class From, int N, int GROUP>
__global__ void __launch_bounds__(256) reduce_rows(const __grid_constant__ ReduceArgs args) {
    static_assert(GROUP <= 32 || GROUP == 256, "a group is in a warp, or the block");
    __shared__ typename F::State slots[8];
    constexpr int PER_BLOCK = 256 / GROUP;
    const long long first = blockIdx.y * args.part, stop = min(args.length, first + args.part);
    for (long long base = blockIdx.x * 1ll * PER_BLOCK; base < args.outputs; base += gridDim.x * 1ll * PER_BLOCK) {
        const long long output = base + threadIdx.x / GROUP;
        typename F::State s = F::start();
        if (output < args.outputs) {
            const Stored<From>* from =
                static_cast<const Stored<From>*>(args.from) + args.kept.offset(output, args.kept_strides);
#pragma unroll 2
            for (long long i = first + threadIdx.x % GROUP * N; i < stop; i += GROUP * N) {
                Computed<From> x[N];
                load_vector<From, N>(from + args.reduced.offset(i, args.reduced_strides), true, N, x);
#pragma unroll
                for (int j = 0; j < N; j++) s = F::add(s, static_cast<typename F::Element>(x[j]), i + j);
            }
        }
        s = gather<F, GROUP>(s, slots);
        if (output < args.outputs && threadIdx.x % GROUP == 0) finish<F, To>(args, output, s);
    }
}

// A block has args.width vectors of N adjacent outputs at a time; blockIdx.y is the part.
template <class F, class To, class From, int N>
__global__ void __launch_bounds__(256, 1) reduce_columns(const __grid_constant__ ReduceArgs args) {
    __shared__ __align__(16) unsigned char memory[256 * N * sizeof(typename F::State)];
    typename F::State* states = reinterpret_cast<typename F::State*>(memory);
    const int width = args.width, height = 256 / width, x = threadIdx.x % width, y = threadIdx.x / width;
    const long long first = blockIdx.y * args.part, stop = min(args.length, first + args.part);
    for (long long base = blockIdx.x * 1ll * width * N; base < args.outputs; base += gridDim.x * 1ll * width * N) {
        const long long output = base + x * N;
        typename F::State s[N];
#pragma unroll
        for (int j = 0; j < N; j++) s[j] = F::start();
        if (output < args.outputs) {
            const Stored<From>* from =
                static_cast<const Stored<From>*>(args.from) + args.kept.offset(output, args.kept_strides);
#pragma unroll 2
            for (long long i = first + y; i < stop; i += height) {
                Computed<From> v[N];
                load_vector<From, N>(from + args.reduced.offset(i, args.reduced_strides), true, N, v);
#pragma unroll
                for (int j = 0; j < N; j++) s[j] = F::add(s[j], static_cast<typename F::Element>(v[j]), i);
            }
        }
        for (int half = height / 2; half; half /= 2) {
            if (y >= half && y < 2 * half)
#pragma unroll
                for (int j = 0; j < N; j++) states[j * 256 + threadIdx.x] = s[j];
            __syncthreads();
            if (y < half)
#pragma unroll
                for (int j = 0; j < N; j++) s[j] = F::merge(s[j], states[j * 256 + threadIdx.x + half * width]);
            __syncthreads();
        }
        if (y == 0 && output < args.outputs)
#pragma unroll
            for (int j = 0; j < N; j++) finish<F, To>(args, output + j, s[j]);
    }
}

struct PartsArgs {
    const void* states;  // (parts, outputs)
    void* to;
    long long outputs;
    double parameter;
    int parts;
};

// GROUP threads put the states of one output together.
template <class F, class To, int GROUP>
__global__ void __launch_bounds__(256) reduce_parts(const __grid_constant__ PartsArgs args) {
    const typename F::State* states = static_cast<const typename F::State*>(args.states);
    const long long output = (blockIdx.x * 256ll + threadIdx.x) / GROUP;
    typename F::State s = F::start();
    if (output < args.outputs)
        for (int part = threadIdx.x % GROUP; part < args.parts; part += GROUP)
            s = F::merge(s, states[part * args.outputs + output]);
    s = gather<F, GROUP>(s, nullptr);
    if (output < args.outputs && threadIdx.x % GROUP == 0)
        static_cast<Stored<To>*>(args.to)[output] =
            Number<To>::store(static_cast<Computed<To>>(F::end(s, args.parameter)));
}

// --- running sums ----------------------------------------------------------------------------------------------------

struct ScanArgs {
    const void* from;
    void* to;
    Axes kept;
    long long from_strides[MOST_AXES], to_strides[MOST_AXES];
    long long lines, length, from_step, to_step;
    int initial;  // whether the value before the first element is written too
};

template <class F, class To, class From>
__global__ void __launch_bounds__(256) scan_lines(const __grid_constant__ ScanArgs args) {
    for (long long line = blockIdx.x * 256ll + threadIdx.x; line < args.lines; line += gridDim.x * 256ll) {
        const Stored<From>* from = static_cast<const Stored<From>*>(args.from);
        Stored<To>* to = static_cast<Stored<To>*>(args.to) + args.kept.offset(line, args.to_strides);
        from += args.kept.offset(line, args.from_strides);
        typename F::State s = F::start();
        if (args.initial) {
            *to = Number<To>::store(static_cast<Computed<To>>(s));
            to += args.to_step;
        }
        for (long long i = 0; i < args.length; i++) {
            s = F::add(s, static_cast<typename F::Element>(Number<From>::load(from[i * args.from_step])), i);
            to[i * args.to_step] = Number<To>::store(static_cast<Computed<To>>(s));
        }
    }
}

template <class F, class To, class From>
__global__ void __launch_bounds__(256) scan_rows(const __grid_constant__ ScanArgs args) {
    using State = typename F::State;
    constexpr int EACH = 4;
    __shared__ State ends[8];
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    for (long long line = blockIdx.x; line < args.lines; line += gridDim.x) {
        const Stored<From>* from = static_cast<const Stored<From>*>(args.from);
        Stored<To>* to = static_cast<Stored<To>*>(args.to) + args.kept.offset(line, args.to_strides);
        from += args.kept.offset(line, args.from_strides);
        State before = F::start();  // of all tiles so far
        if (args.initial) {
            if (threadIdx.x == 0) *to = Number<To>::store(static_cast<Computed<To>>(before));
            to += args.to_step;
        }
        for (long long tile = 0; tile < args.length; tile += 256 * EACH) {
            State s[EACH];
            State total = F::start();
#pragma unroll
            for (int j = 0; j < EACH; j++) {
                const long long i = tile + threadIdx.x * EACH + j;
                if (i < args.length)
                    total = F::add(total, static_cast<typename F::Element>(Number<From>::load(from[i * args.from_step])), i);
                s[j] = total;
            }
            State upto = total;  // of the lanes up to this one
            for (int step = 1; step < 32; step *= 2) {
                const State other = __shfl_up_sync(0xffffffffu, upto, step);
                if (lane >= step) upto = F::merge(other, upto);
            }
            if (lane == 31) ends[warp] = upto;
            __syncthreads();
            State start = before;
            for (int w = 0; w < 8; w++) {
                if (w == warp) upto = F::merge(start, __shfl_up_sync(0xffffffffu, upto, 1));
                if (w == warp && lane == 0) upto = start;
                start = F::merge(start, ends[w]);
            }
            before = start;
#pragma unroll
            for (int j = 0; j < EACH; j++) {
                const long long i = tile + threadIdx.x * EACH + j;
                if (i < args.length)
                    to[i * args.to_step] = Number<To>::store(static_cast<Computed<To>>(F::merge(upto, s[j])));
            }
            __syncthreads();
        }
    }
}
