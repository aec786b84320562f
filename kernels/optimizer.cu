// The update rules of the optimizers, the norm of all gradients, and what is done to gradients in place
// (gpunet/ops/optimizer.py), each in one launch for up to MOST_TENSORS arrays.
//
// The arrays lie wherever they are; a launch's table names them. They are cut into chunks of 256 threads x ROUNDS
// accesses of 16 bytes, and a block takes one chunk: it finds its array by halving. What a rule keeps for each element
// is in one array per quantity, where the parameters' values lie one after the other; `starts` says from where on.
// Arrays that do not lie at multiples of 16 bytes are walked along element by element, as is the end of each.
//
//   update            Reads each parameter, gradient and state once, and writes parameter and state once: nothing else.
//                     The first step with momentum does not read the buffer.
//   numbers           What depends on learning rate and step, where these are in device memory (so that a captured
//                     graph can be replayed with others): one thread, into the array that `update` then reads.
//   gradient_norm     Reads each gradient once; a sum (or maximum) for each chunk, whose order does not depend on the
//                     grid. finish_norm, one block, combines these in double precision.
//   change_gradients  Reads and writes each gradient once; where a norm is within its limit, it touches nothing.
#include "array.cuh"

constexpr int MOST_TENSORS = 128, ROUNDS = 4, STATES = 3, THREADS = 256;

// The launching side packs this struct; 3.6 of the 4 KB that parameters may take.
struct Tensors {
    long long count;
    void* changed[MOST_TENSORS];         // or, by gradient_norm, only read
    const void* gradients[MOST_TENSORS]; // for `update`
    long long starts[MOST_TENSORS + 1];  // of each array among all, in elements
    int chunks[MOST_TENSORS + 1];        // the number of each array's first chunk; behind the last, that of all
};

// A part of an array that a block works on.
struct Chunk {
    int tensor, count;  // which array, and how many elements
    long long from;     // its first element

    template <int ELEMENTS>
    static DEVICE Chunk of(const Tensors& tensors, int index) {
        int low = 0, high = static_cast<int>(tensors.count);
        while (high - low > 1) {
            const int middle = (low + high) / 2;
            if (tensors.chunks[middle] <= index)
                low = middle;
            else
                high = middle;
        }
        const long long from = static_cast<long long>(index - tensors.chunks[low]) * ELEMENTS;
        const long long rest = tensors.starts[low + 1] - tensors.starts[low] - from;
        return {low, static_cast<int>(min(rest, static_cast<long long>(ELEMENTS))), from};
    }
};

// Elements of T in 16 bytes, and in a chunk.
template <class T>
constexpr int WIDTH = 16 / sizeof(Stored<T>);
template <class T>
constexpr int CHUNK = THREADS * WIDTH<T> * ROUNDS;

DEVICE bool is_aligned(const void* p) { return reinterpret_cast<unsigned long long>(p) % 16 == 0; }

// N adjacent elements, in accesses of up to 16 bytes.
template <class T, int N>
DEVICE void load_all(const Stored<T>* from, Computed<T> (&x)[N]) {
    constexpr int PIECE = N < WIDTH<T> ? N : WIDTH<T>;
#pragma unroll
    for (int i = 0; i < N; i += PIECE) {
        const auto v = *reinterpret_cast<const Vector<Stored<T>, PIECE>*>(from + i);
#pragma unroll
        for (int j = 0; j < PIECE; j++) x[i + j] = Number<T>::load(v.at[j]);
    }
}

template <class T, int N>
DEVICE void store_all(Stored<T>* to, const Computed<T> (&x)[N]) {
    constexpr int PIECE = N < WIDTH<T> ? N : WIDTH<T>;
#pragma unroll
    for (int i = 0; i < N; i += PIECE) {
        Vector<Stored<T>, PIECE> v;
#pragma unroll
        for (int j = 0; j < PIECE; j++) v.at[j] = Number<T>::store(x[i + j]);
        *reinterpret_cast<Vector<Stored<T>, PIECE>*>(to + i) = v;
    }
}

// --- update rules ---------------------------------------------------------------------------------------------------

// What depends on learning rate and step.
struct Numbers {
    double rate, eps, shrink;
};

struct UpdateArgs {
    const Numbers* device_numbers;  // or null: `numbers` hold
    const int* skip;                // or null; where it is not 0, nothing is changed
    void* states[STATES];           // as many as the rule has
    Numbers numbers;
    double weight_decay, constants[3];
    int maximize, first;
    Tensors tensors;
};

// The rules, each a function of one element: it takes parameter, gradient (with its sign and the weight decay in it)
// and states, changes the states, and returns the parameter.
template <class F, bool MOMENTUM, bool NESTEROV>
struct Sgd {
    static constexpr int STATES = MOMENTUM;
    const F rate, momentum, share;
    const bool first;  // the buffer is still empty

    DEVICE Sgd(const UpdateArgs& args, const Numbers& numbers)
        : rate(F(numbers.rate)), momentum(F(args.constants[0])), share(F(args.constants[1])), first(args.first) {}

    DEVICE F operator()(F p, F g, F* s) const {
        if (!MOMENTUM) return p - rate * g;
        s[0] = first ? g : momentum * s[0] + share * g;
        return p - rate * (NESTEROV ? g + momentum * s[0] : s[0]);
    }
};

template <class F, bool AMSGRAD>
struct Adam {
    static constexpr int STATES = AMSGRAD ? 3 : 2;
    static constexpr bool first = false;
    const F rate, eps, shrink, share1, beta2, share2;

    DEVICE Adam(const UpdateArgs& args, const Numbers& numbers)
        : rate(F(numbers.rate)),
          eps(F(numbers.eps)),
          shrink(F(numbers.shrink)),
          share1(F(args.constants[0])),
          beta2(F(args.constants[1])),
          share2(F(args.constants[2])) {}

    DEVICE F operator()(F p, F g, F* s) const {
        s[0] += (g - s[0]) * share1;
        s[1] = s[1] * beta2 + g * g * share2;
        if (AMSGRAD) s[2] = Larger::of(s[2], s[1]);
        return p * shrink - rate * (s[0] / (sqrt(s[AMSGRAD ? 2 : 1]) + eps));
    }
};

template <class F, bool CENTERED, bool MOMENTUM>
struct RmsProp {
    static constexpr int STATES = 1 + CENTERED + MOMENTUM;
    static constexpr bool first = false;
    const F rate, eps, alpha, share, momentum;

    DEVICE RmsProp(const UpdateArgs& args, const Numbers& numbers)
        : rate(F(numbers.rate)),
          eps(F(numbers.eps)),
          alpha(F(args.constants[0])),
          share(F(args.constants[1])),
          momentum(F(args.constants[2])) {}

    DEVICE F operator()(F p, F g, F* s) const {
        s[0] = s[0] * alpha + g * g * share;
        F v = s[0];
        if (CENTERED) {
            s[1] += (g - s[1]) * share;
            v -= s[1] * s[1];
            v = v < F(0) ? F(0) : v;  // a variance, which rounding may have made negative
        }
        const F step = g / (sqrt(v) + eps);
        if (!MOMENTUM) return p - rate * step;
        F& buffer = s[STATES - 1];
        buffer = buffer * momentum + step;
        return p - rate * buffer;
    }
};

template <class F>
struct Adagrad {
    static constexpr int STATES = 1;
    static constexpr bool first = false;
    const F rate, eps;

    DEVICE Adagrad(const UpdateArgs& args, const Numbers& numbers) : rate(F(numbers.rate)), eps(F(numbers.eps)) {}

    DEVICE F operator()(F p, F g, F* s) const {
        s[0] += g * g;
        return p - rate * (g / (sqrt(s[0]) + eps));
    }
};

// N adjacent elements.
template <class T, int N, class Rule>
DEVICE void update_at(const UpdateArgs& args, const Rule& rule, Stored<T>* params, const Stored<T>* grads,
                      Computed<T>* const* states, int at) {
    using F = Computed<T>;
    constexpr int COUNT = Rule::STATES;
    F p[N], g[N], s[COUNT + 1][N];  // of no use: the last of s, lest an array have no elements
    load_all<T>(params + at, p);
    load_all<T>(grads + at, g);
#pragma unroll
    for (int k = 0; k < COUNT; k++)
        if (!rule.first) load_all<F>(states[k] + at, s[k]);
    const F decay = F(args.weight_decay);
#pragma unroll
    for (int i = 0; i < N; i++) {
        F gradient = args.maximize ? -g[i] : g[i], own[COUNT + 1];
        if (decay != F(0)) gradient += decay * p[i];
#pragma unroll
        for (int k = 0; k < COUNT; k++) own[k] = rule.first ? F(0) : s[k][i];
        p[i] = rule(p[i], gradient, own);
#pragma unroll
        for (int k = 0; k < COUNT; k++) s[k][i] = own[k];
    }
    store_all<T>(params + at, p);
#pragma unroll
    for (int k = 0; k < COUNT; k++) store_all<F>(states[k] + at, s[k]);
}

template <class T, class Rule>
__global__ void __launch_bounds__(THREADS, 2) update(const __grid_constant__ UpdateArgs args) {
    using F = Computed<T>;
    constexpr int N = WIDTH<T>;
    if (args.skip && *args.skip) return;
    const Chunk chunk = Chunk::of<CHUNK<T>>(args.tensors, blockIdx.x);
    const Rule rule(args, args.device_numbers ? *args.device_numbers : args.numbers);
    Stored<T>* params = static_cast<Stored<T>*>(args.tensors.changed[chunk.tensor]) + chunk.from;
    const Stored<T>* grads = static_cast<const Stored<T>*>(args.tensors.gradients[chunk.tensor]) + chunk.from;
    F* states[STATES];
    bool whole = is_aligned(params) && is_aligned(grads);
#pragma unroll
    for (int k = 0; k < Rule::STATES; k++) {
        states[k] = static_cast<F*>(args.states[k]) + args.tensors.starts[chunk.tensor] + chunk.from;
        whole = whole && is_aligned(states[k]);
    }
    const int vectors = whole ? chunk.count / N * N : 0;
    for (int i = threadIdx.x * N; i < vectors; i += THREADS * N)
        update_at<T, N>(args, rule, params, grads, states, i);
    for (int i = vectors + threadIdx.x; i < chunk.count; i += THREADS)
        update_at<T, 1>(args, rule, params, grads, states, i);
}

// Learning rate and step, each in device memory or, where the pointer is null, given.
struct NumbersArgs {
    Numbers* numbers;
    const void* device_rate;  // float or double
    const long long* device_step;
    double rate, step;
    double constants[5];
    int rate_is_double;

    DEVICE double learning_rate() const {
        if (!device_rate) return rate;
        return rate_is_double ? *static_cast<const double*>(device_rate) : *static_cast<const float*>(device_rate);
    }
    DEVICE double steps() const { return device_step ? static_cast<double>(*device_step) : step; }
};

enum Family { PLAIN, ADAM, ADAGRAD };

// PLAIN: the given eps, and no shrinking.
template <Family FAMILY>
__global__ void __launch_bounds__(32) numbers(const __grid_constant__ NumbersArgs args) {
    if (threadIdx.x != 0) return;
    const double lr = args.learning_rate(), eps = args.constants[0];
    Numbers found = {lr, eps, 1.0};
    if (FAMILY == ADAM) {
        const double step = args.steps(), beta1 = args.constants[1], beta2 = args.constants[2];
        const double scale = sqrt(1.0 - pow(beta2, step)), shrinking = args.constants[3];
        found = {lr * scale / (1.0 - pow(beta1, step)), eps * scale, 1.0 - lr * shrinking};
    }
    if (FAMILY == ADAGRAD) found.rate = lr / (1.0 + (args.steps() - 1.0) * args.constants[4]);
    *args.numbers = found;
}

template <class Step>
struct CountArgs {
    Step* step;
    const int* skip;  // or null
};

template <class Step>
__global__ void __launch_bounds__(32) count_step(const __grid_constant__ CountArgs<Step> args) {
    if (threadIdx.x == 0 && !(args.skip && *args.skip)) *args.step += 1;
}

// --- norms of gradients ---------------------------------------------------------------------------------------------

enum Order { SUM, EUCLIDEAN, LARGEST, POWER };

struct NormArgs {
    double* parts;  // one for each chunk
    double order;   // of POWER
    Tensors tensors;
};

// What is added up, or of LARGEST compared.
template <Order ORDER, class F>
DEVICE F term(F x, F order) {
    return ORDER == EUCLIDEAN ? x * x : ORDER == POWER ? pow(fabs(x), order) : fabs(x);
}

template <Order ORDER, class F>
DEVICE F combine(F a, F b) {
    return ORDER == LARGEST ? Larger::of(a, b) : a + b;
}

// For reduce_block.
template <Order ORDER>
struct Combine {
    template <class F>
    static DEVICE F of(F a, F b) { return combine<ORDER>(a, b); }
};

template <class T, Order ORDER>
__global__ void __launch_bounds__(THREADS) gradient_norm(const __grid_constant__ NormArgs args) {
    using F = Computed<T>;
    constexpr int N = WIDTH<T>;
    __shared__ F slots[THREADS / 32];
    const Chunk chunk = Chunk::of<CHUNK<T>>(args.tensors, blockIdx.x);
    const Stored<T>* x = static_cast<const Stored<T>*>(args.tensors.changed[chunk.tensor]) + chunk.from;
    const int vectors = is_aligned(x) ? chunk.count / N * N : 0;
    const F order = F(args.order);
    F v[ROUNDS][N] = {}, sums[N] = {};  // zeros change neither sums nor maxima
#pragma unroll
    for (int round = 0; round < ROUNDS; round++) {
        const int i = (round * THREADS + threadIdx.x) * N;
        if (i < vectors) load_all<T>(x + i, v[round]);
    }
#pragma unroll
    for (int round = 0; round < ROUNDS; round++)
#pragma unroll
        for (int j = 0; j < N; j++) sums[j] = combine<ORDER>(sums[j], term<ORDER>(v[round][j], order));
    F sum = sums[0];
#pragma unroll
    for (int j = 1; j < N; j++) sum = combine<ORDER>(sum, sums[j]);
    for (int i = vectors + threadIdx.x; i < chunk.count; i += THREADS)
        sum = combine<ORDER>(sum, term<ORDER>(F(Number<T>::load(x[i])), order));
    sum = reduce_block<Combine<ORDER>, THREADS>(sum, slots);
    if (threadIdx.x == 0) args.parts[blockIdx.x] = sum;
}

struct FinishArgs {
    const double* parts;
    void* norm;
    double order;
    long long count;
};

template <class F, Order ORDER>
__global__ void __launch_bounds__(1024) finish_norm(const __grid_constant__ FinishArgs args) {
    __shared__ double slots[32];
    double sum = 0;
    for (long long i = threadIdx.x; i < args.count; i += 1024) sum = combine<ORDER>(sum, args.parts[i]);
    sum = reduce_block<Combine<ORDER>, 1024>(sum, slots);
    if (ORDER == EUCLIDEAN) sum = sqrt(sum);
    if (ORDER == POWER) sum = pow(sum, 1.0 / args.order);
    if (threadIdx.x == 0) *static_cast<F*>(args.norm) = F(sum);
}

// --- changes of gradients -------------------------------------------------------------------------------------------

enum Change { CLIP_NORM, CLIP_VALUE, UNSCALE };

struct ChangeArgs {
    const void* number;  // CLIP_NORM: the norm; UNSCALE: the scale, a float, or null. Of the computed type.
    int* found;          // UNSCALE: becomes 1 where a gradient is not finite
    double limit;        // the greatest norm or absolute value; UNSCALE without a pointer: the scale
    Tensors tensors;
};

template <class T, Change CHANGE, int N>
DEVICE bool change_at(Stored<T>* x, Computed<T> by) {
    using F = Computed<T>;
    F v[N];
    load_all<T>(x, v);
    bool bad = false;
#pragma unroll
    for (int i = 0; i < N; i++) {
        if (CHANGE == UNSCALE) bad = bad || v[i] - v[i] != F(0);
        if (CHANGE == CLIP_VALUE)
            v[i] = v[i] < -by ? -by : v[i] > by ? by : v[i];  // a NaN stays one
        else
            v[i] *= by;
    }
    store_all<T>(x, v);
    return bad;
}

template <class T, Change CHANGE>
__global__ void __launch_bounds__(THREADS) change_gradients(const __grid_constant__ ChangeArgs args) {
    using F = Computed<T>;
    constexpr int N = WIDTH<T>;
    F by = F(args.limit);
    if (CHANGE == CLIP_NORM) {
        const F factor = by / (*static_cast<const F*>(args.number) + F(1e-6));
        if (factor >= F(1)) return;
        by = factor;
    } else if (CHANGE == UNSCALE) {
        by = F(1) / (args.number ? F(*static_cast<const float*>(args.number)) : by);
    }
    const Chunk chunk = Chunk::of<CHUNK<T>>(args.tensors, blockIdx.x);
    Stored<T>* x = static_cast<Stored<T>*>(args.tensors.changed[chunk.tensor]) + chunk.from;
    const int vectors = is_aligned(x) ? chunk.count / N * N : 0;
    bool bad = false;
#pragma unroll
    for (int round = 0; round < ROUNDS; round++) {
        const int i = (round * THREADS + threadIdx.x) * N;
        if (i >= vectors) break;
        bad = change_at<T, CHANGE, N>(x + i, by) || bad;
    }
    for (int i = vectors + threadIdx.x; i < chunk.count; i += THREADS) bad = change_at<T, CHANGE, 1>(x + i, by) || bad;
    if (CHANGE == UNSCALE && bad) atomicMax(args.found, 1);
}
