// One functor (elementwise.cuh) applied to the elements of up to six inputs: arrays, or numbers among the arguments.
//
//   elementwise_dense    All arrays lie alike and without gaps, in whatever order of axes: no index arithmetic. A thread
//                        takes N adjacent elements of each array, by one access of up to 16 bytes.
//   elementwise_strided  Arrays of any strides, broadcast ones among them. The launching side (gpunet/ops/launch.py)
//                        merges the axes that all arrays lie alike in, so that a bias or a column of factors leaves two.
//                        A thread takes N adjacent elements of the last axis, where every array has them adjacent or is
//                        broadcast along it.
//
// Each input is read once and the result written once; what is broadcast is read again from a cache. Inputs of any type
// are converted to C as they are loaded, and results to To as they are stored: no array is made of a conversion. The
// result may be an input: a thread has read its elements before it writes them.
#include "elementwise.cuh"

constexpr int MOST_INPUTS = 6;

// In the place of an input's type: a number among the arguments, or no input.
struct Constant {};
struct None {};

template <class T>
constexpr bool is_input = true;
template <>
constexpr bool is_input<None> = false;
template <class T>
constexpr bool is_array = is_input<T>;
template <>
constexpr bool is_array<Constant> = false;

struct DenseArgs {
    const void* from[MOST_INPUTS];
    void* to;
    long long count;  // of elements
    double constants[MOST_INPUTS];
};

struct StridedArgs {
    const void* from[MOST_INPUTS];
    void* to;
    Axes axes;
    long long strides[MOST_INPUTS + 1][MOST_AXES];  // of the inputs and of the result
    long long count;                                // of vectors
    double constants[MOST_INPUTS];                  // the bits of an integer where C is one
};

// N values of an input as numbers of type C.
template <class C, int N, class From>
struct Input {
    Computed<C> at[N];

    DEVICE explicit Input(double) {}
    DEVICE void load(const void* array, long long offset, bool whole, int count, bool same) {
        const Stored<From>* from = static_cast<const Stored<From>*>(array) + offset;
        Computed<From> x[N];
        if (same) {
            x[0] = Number<From>::load(*from);
#pragma unroll
            for (int i = 1; i < N; i++) x[i] = x[0];
        } else {
            load_vector<From, N>(from, whole, count, x);
        }
#pragma unroll
        for (int i = 0; i < N; i++) at[i] = static_cast<Computed<C>>(x[i]);
    }
};

template <class C, int N>
struct Input<C, N, Constant> {
    Computed<C> at[N];

    DEVICE explicit Input(double value) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            if constexpr (is_real<Computed<C>>)
                at[i] = static_cast<Computed<C>>(value);
            else
                at[i] = static_cast<Computed<C>>(__double_as_longlong(value));
        }
    }
    DEVICE void load(const void*, long long, bool, int, bool) {}
};

template <class C, int N>
struct Input<C, N, None> : Input<C, N, Constant> {
    DEVICE explicit Input(double) : Input<C, N, Constant>(0.0) {}
};

// The inputs of a functor, and what it makes of them.
template <class F, class C, class To, int N, class First, class Second, class Third, class Fourth, class Fifth,
          class Sixth>
struct Inputs {
    Input<C, N, First> first;
    Input<C, N, Second> second;
    Input<C, N, Third> third;
    Input<C, N, Fourth> fourth;
    Input<C, N, Fifth> fifth;
    Input<C, N, Sixth> sixth;

    DEVICE explicit Inputs(const double (&constants)[MOST_INPUTS])
        : first(constants[0]),
          second(constants[1]),
          third(constants[2]),
          fourth(constants[3]),
          fifth(constants[4]),
          sixth(constants[5]) {}

    DEVICE void store(void* array, long long offset, bool whole, int count) const {
        Computed<To> y[N];
#pragma unroll
        for (int i = 0; i < N; i++) {
            if constexpr (is_input<Sixth>)
                y[i] = static_cast<Computed<To>>(
                    F::of(first.at[i], second.at[i], third.at[i], fourth.at[i], fifth.at[i], sixth.at[i]));
            else if constexpr (is_input<Fifth>)
                y[i] = static_cast<Computed<To>>(
                    F::of(first.at[i], second.at[i], third.at[i], fourth.at[i], fifth.at[i]));
            else if constexpr (is_input<Fourth>)
                y[i] = static_cast<Computed<To>>(F::of(first.at[i], second.at[i], third.at[i], fourth.at[i]));
            else if constexpr (is_input<Third>)
                y[i] = static_cast<Computed<To>>(F::of(first.at[i], second.at[i], third.at[i]));
            else if constexpr (is_input<Second>)
                y[i] = static_cast<Computed<To>>(F::of(first.at[i], second.at[i]));
            else
                y[i] = static_cast<Computed<To>>(F::of(first.at[i]));
        }
        store_vector<To, N>(static_cast<Stored<To>*>(array) + offset, whole, count, y);
    }
};

template <class F, class C, class To, int N, class First, class Second = None, class Third = None, class Fourth = None,
          class Fifth = None, class Sixth = None>
__global__ void __launch_bounds__(256) elementwise_dense(const __grid_constant__ DenseArgs args) {
    Inputs<F, C, To, N, First, Second, Third, Fourth, Fifth, Sixth> inputs(args.constants);
    for (long long i = (blockIdx.x * 256ll + threadIdx.x) * N; i < args.count; i += gridDim.x * 256ll * N) {
        const int count = static_cast<int>(min(args.count - i, static_cast<long long>(N)));
        const bool whole = count == N;
        inputs.first.load(args.from[0], i, whole, count, false);
        inputs.second.load(args.from[1], i, whole, count, false);
        inputs.third.load(args.from[2], i, whole, count, false);
        inputs.fourth.load(args.from[3], i, whole, count, false);
        inputs.fifth.load(args.from[4], i, whole, count, false);
        inputs.sixth.load(args.from[5], i, whole, count, false);
        inputs.store(args.to, i, whole, count);
    }
}

template <class F, class C, class To, int N, class First, class Second = None, class Third = None, class Fourth = None,
          class Fifth = None, class Sixth = None>
__global__ void __launch_bounds__(256) elementwise_strided(const __grid_constant__ StridedArgs args) {
    Inputs<F, C, To, N, First, Second, Third, Fourth, Fifth, Sixth> inputs(args.constants);
    constexpr bool USED[] = {is_array<First>, is_array<Second>, is_array<Third>, is_array<Fourth>,
                             is_array<Fifth>, is_array<Sixth>,  true};
    const int last = args.axes.count - 1;
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < args.count; i += gridDim.x * 256ll) {
        long long rest = i * N, offsets[MOST_INPUTS + 1] = {};
#pragma unroll
        for (int axis = MOST_AXES - 1; axis >= 0; axis--) {
            if (axis > last) continue;
            long long at = rest;
            if (axis) {
                const unsigned length = args.axes.shape[axis];
                const long long next = rest < 0x80000000ll ? unsigned(rest) / length : rest / length;
                at -= next * length;
                rest = next;
            }
#pragma unroll
            for (int k = 0; k <= MOST_INPUTS; k++)
                if (USED[k]) offsets[k] += at * args.strides[k][axis];
        }
        inputs.first.load(args.from[0], offsets[0], true, N, N > 1 && !args.strides[0][last]);
        inputs.second.load(args.from[1], offsets[1], true, N, N > 1 && !args.strides[1][last]);
        inputs.third.load(args.from[2], offsets[2], true, N, N > 1 && !args.strides[2][last]);
        inputs.fourth.load(args.from[3], offsets[3], true, N, N > 1 && !args.strides[3][last]);
        inputs.fifth.load(args.from[4], offsets[4], true, N, N > 1 && !args.strides[4][last]);
        inputs.sixth.load(args.from[5], offsets[5], true, N, N > 1 && !args.strides[5][last]);
        inputs.store(args.to, offsets[MOST_INPUTS], true, N);
    }
}
