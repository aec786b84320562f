// Losses of classes and of probabilities, and their gradients.
//
// The cross-entropy of a row of logits needs of it the logarithm of a sum of exponentials, and its gradient that and the
// row again: rows.cuh says where it is kept in between. So a loss and its gradient can come of one pass, which reads the
// logits once and writes the gradient once. What a row is multiplied by in the mean is known from the class indices alone
// and computed first (`class_sums` without losses); the losses of all rows are then added up in a fixed order.
//
// A class index out of range cannot stop a GPU: its loss is NaN, and so is the gradient of its row.
#include "rows.cuh"

struct CrossEntropyArgs : RowArgs {
    const long long* target;  // (rows)
    const void* weight;       // (classes), or null for ones
    const void* g;            // (rows) or, with g_step 0, one: gradients of what is computed of the losses; null for one
    const void* share;        // what each row's gradient and loss count in the mean, one number of type F; null for one
    void* losses;             // (rows), of type F, not multiplied by `share`
    long long g_step;
    long long ignored;  // a class index whose rows have loss and gradient zero
    double smoothing;   // the share of the target that is spread evenly over all classes
};

template <class T, bool WITH_LOSS, bool WITH_GRADIENT>
struct CrossEntropy {
    using Type = T;
    using F = Computed<T>;
    using Args = CrossEntropyArgs;
    static constexpr int INPUTS = 1;
    static constexpr bool WRITES = WITH_GRADIENT;

    const Args& args;
    const long long target;
    ExponentialSum<F> exponentials;
    F weighted = F(0), weights = F(0);  // sums of weight[c] x[c] and of weight[c], for smoothing
    F own, spread, total, factor;       // from `finish` on: q is `spread` weight[c], and `own` more for the target
    F log_sum;

    static DEVICE F neutral() { return -infinity<F>(); }

    DEVICE CrossEntropy(const Args& args, long long row) : args(args), target(args.target[row]) {
        factor = F(1);
        if constexpr (WITH_GRADIENT) {
            if (args.g) factor = Number<T>::load(static_cast<const Stored<T>*>(args.g)[row * args.g_step]);
            if (args.share) factor *= *static_cast<const F*>(args.share);
        }
    }

    DEVICE bool is_kept() const { return target != args.ignored; }
    DEVICE bool is_class() const { return target >= 0 && target < args.length; }
    DEVICE F weight(long long c) const {
        return args.weight ? F(Number<T>::load(static_cast<const Stored<T>*>(args.weight)[c])) : F(1);
    }

    template <int PER, int V, int BPER>
    DEVICE void add(const F (&x)[PER][V], const F (&)[BPER][V], const int (&starts)[PER], int length) {
        exponentials.add(x);
        if (args.smoothing == 0.0) return;
#pragma unroll
        for (int p = 0; p < PER; p++)
#pragma unroll
            for (int i = 0; i < V; i++) {
                const int c = starts[p] + i;
                const bool belongs = c >= 0 && c < length;
                const F w = belongs ? weight(c) : F(0);
                weights += w;
                weighted += belongs ? w * x[p][i] : F(0);
            }
    }

    template <class Group>
    DEVICE void finish(Group& group) {
        exponentials.finish(group);
        log_sum = log(exponentials.sum);
        if (!is_finite(exponentials.top)) log_sum = exponentials.top - exponentials.top;  // NaN, as that of the reference
        own = F(1.0 - args.smoothing) * (is_class() ? weight(target) : F(0));
        spread = total = F(0);
        if (args.smoothing != 0.0) {
            weighted = group.template reduce<Add, 2>(weighted);
            weights = group.template reduce<Add, 3>(weights);
            spread = F(args.smoothing) / F(args.length);
            total = spread * weights;
        }
        total += own;
        if (!is_class()) factor = infinity<F>() - infinity<F>();
    }

    DEVICE F result(F x, F, int c) const {
        if (!is_kept()) return F(0);
        F q = c == target ? own : F(0);
        if (args.smoothing != 0.0 && c >= 0 && c < args.length) q += spread * weight(c);
        return (exp(x - exponentials.top - log_sum) * total - q) * factor;
    }

    DEVICE void end(const Args&, long long row) const {
        if constexpr (WITH_LOSS) {
            F loss = F(0);
            if (is_kept() && is_class()) {
                const F at_target = Number<T>::load(row_in<T>(args, 0, row)[target]);
                loss = own * (log_sum + (exponentials.top - at_target));
                if (args.smoothing != 0.0) loss += spread * (weights * (log_sum + exponentials.top) - weighted);
            } else if (is_kept()) {
                loss = infinity<F>() - infinity<F>();
            }
            static_cast<F*>(args.losses)[row] = loss;
        }
    }
};

// --- sums over rows ---

struct ClassSumsArgs {
    const void* losses;       // (count) of type F, or null
    const long long* target;  // (count), or null where `counts` says how much each counts
    const void* counts;       // (count) of type F
    const void* weight;       // (classes) of type T, or null for ones
    void* loss_sums;          // (blocks) of type F
    void* count_sums;         // (blocks) of type F
    void* result;             // of one block: the sum of losses, of type T; or null
    void* share;              // of one block: 1 / the sum of counts, of type F; or null
    long long count, classes, ignored;
    int mean;  // whether `result` is the sum times the share
};

// Each block adds up its part of the rows; of several blocks' sums, one more block makes the result.
template <class T>
__global__ void __launch_bounds__(512) class_sums(const __grid_constant__ ClassSumsArgs args) {
    using F = Computed<T>;
    __shared__ F slots[2][16];
    const long long part = (args.count + gridDim.x - 1) / gridDim.x;
    const long long from = blockIdx.x * part, to = min(args.count, from + part);
    F losses = F(0), counts = F(0);
    for (long long i = from + threadIdx.x; i < to; i += 512) {
        if (args.losses) losses += static_cast<const F*>(args.losses)[i];
        if (!args.target) {
            counts += static_cast<const F*>(args.counts)[i];
        } else if (args.target[i] != args.ignored) {
            const long long c = args.target[i];
            const bool known = args.weight && c >= 0 && c < args.classes;
            counts += known ? F(Number<T>::load(static_cast<const Stored<T>*>(args.weight)[c])) : F(1);
        }
    }
    losses = reduce_block<Add, 512>(losses, slots[0]);
    counts = reduce_block<Add, 512>(counts, slots[1]);
    if (threadIdx.x != 0) return;
    if (gridDim.x > 1) {
        static_cast<F*>(args.loss_sums)[blockIdx.x] = losses;
        static_cast<F*>(args.count_sums)[blockIdx.x] = counts;
        return;
    }
    if (args.share) *static_cast<F*>(args.share) = F(1) / counts;
    if (args.result)  // of nothing it is 0 / 0: NaN
        *static_cast<Stored<T>*>(args.result) = Number<T>::store(args.mean ? losses / counts : losses);
}

// --- elements ---

struct ElementsArgs {
    const void* in[3];
    void* out;
    Axes axes;
    long long in_strides[3][MOST_AXES], out_strides[MOST_AXES];
    long long count;  // of vectors
};

template <class F>
DEVICE F limited_logarithm(F p) {  // of NaN, NaN
    const F y = p <= F(0) ? F(-100) : log(p);
    return y < F(-100) ? F(-100) : y;
}

// -(t log(x) + (1 - t) log(1 - x)) of x and t, or with GRADIENT g (x - t) / (x (1 - x)) of x, t and g.
template <class T, int V, bool GRADIENT>
__global__ void __launch_bounds__(256) binary_cross_entropy(const __grid_constant__ ElementsArgs args) {
    using F = Computed<T>;
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < args.count; i += gridDim.x * 256ll) {
        F in[3][V], y[V];
#pragma unroll
        for (int a = 0; a < (GRADIENT ? 3 : 2); a++)
            load_vector<T, V>(static_cast<const Stored<T>*>(args.in[a]) + args.axes.offset(i * V, args.in_strides[a]),
                              true, V, in[a]);
#pragma unroll
        for (int n = 0; n < V; n++) {
            const F x = in[0][n], t = in[1][n];
            if constexpr (GRADIENT) {
                const F slope = x * (F(1) - x);
                const F least = is_half<T> ? F(0x1p-14) : F(1e-12);  // keeps it finite where x is 0 or 1
                y[n] = in[2][n] * (x - t) / (slope < least ? least : slope);
            } else {
                y[n] = (t - F(1)) * limited_logarithm(F(1) - x) - t * limited_logarithm(x);
            }
        }
        store_vector<T, V>(static_cast<Stored<T>*>(args.out) + args.axes.offset(i * V, args.out_strides), true, V, y);
    }
}

// A gradient times a factor in memory; nothing is touched where that is 1.
template <class T>
__global__ void __launch_bounds__(256) scale(const __grid_constant__ ElementsArgs args) {
    using F = Computed<T>;
    constexpr int V = 16 / sizeof(Stored<T>);
    const F factor = Number<T>::load(*static_cast<const Stored<T>*>(args.in[0]));
    if (factor == F(1)) return;
    Stored<T>* to = static_cast<Stored<T>*>(args.out);
    for (long long i = (blockIdx.x * 256ll + threadIdx.x) * V; i < args.count; i += gridDim.x * 256ll * V) {
        F x[V];
        const int count = static_cast<int>(min(args.count - i, static_cast<long long>(V)));
        load_vector<T, V>(to + i, count == V, count, x);
#pragma unroll
        for (int n = 0; n < V; n++) x[n] *= factor;
        store_vector<T, V>(to + i, count == V, count, x);
    }
}
