// Softmax, its logarithm and the logarithm of its sum, and their derivatives, along one axis of an array.
//
// Each element of each input is read once and each result written once (rows.cuh says where a row is kept in between);
// rows that fit neither registers nor shared memory are read twice. All sums are computed in float, those of doubles in
// double, and in an order that depends on nothing but the row's length and place.
#include "rows.cuh"

enum Kind {
    SOFTMAX,           // x -> exp(x) / sum(exp(x))
    LOG_SOFTMAX,       // x -> x - log(sum(exp(x)))
    LOGSUMEXP,         // x -> log(sum(exp(x))), one number per row
    SOFTMAX_GRAD,      // g, y -> y (g - sum(g y))
    LOG_SOFTMAX_GRAD,  // g, y -> g - exp(y) sum(g)
    LOGSUMEXP_GRAD     // x; per row y, g -> g exp(x - y)
};

template <int KIND, class T>
struct Softmax {
    using Type = T;
    using F = Computed<T>;
    using Args = RowArgs;
    static constexpr int INPUTS = KIND == SOFTMAX_GRAD || KIND == LOG_SOFTMAX_GRAD ? 2 : 1;
    static constexpr bool WRITES = KIND != LOGSUMEXP;
    static constexpr bool SUMS = INPUTS == 1 && KIND != LOGSUMEXP_GRAD;

    ExponentialSum<F> exponentials;
    F sum = F(0), first, second;  // `first` and `second` are the row's, from `finish` on

    // What stands in the place of elements that a row does not have.
    static DEVICE F neutral() { return INPUTS == 1 ? -infinity<F>() : F(0); }

    DEVICE Softmax() {}
    DEVICE Softmax(const Args& args, long long row) {
        if constexpr (KIND == LOGSUMEXP_GRAD) {
            first = Number<T>::load(*row_in<T>(args, 1, row));
            second = Number<T>::load(*row_in<T>(args, 2, row));
        }
    }

    template <int PER, int V, int BPER>
    DEVICE void add(const F (&a)[PER][V], const F (&b)[BPER][V], const int (&)[PER], int) {
        if constexpr (SUMS) {
            exponentials.add(a);
        } else if constexpr (INPUTS == 2) {
#pragma unroll
            for (int p = 0; p < PER; p++)
#pragma unroll
                for (int i = 0; i < V; i++) sum += KIND == SOFTMAX_GRAD ? a[p][i] * b[p][i] : a[p][i];
        }
    }

    template <class Group>
    DEVICE void finish(Group& group) {
        if constexpr (SUMS) {
            exponentials.finish(group);
            first = exponentials.top;
            second = KIND == SOFTMAX ? F(1) / exponentials.sum : log(exponentials.sum);
        } else if constexpr (INPUTS == 2) {
            first = group.template reduce<Add, 0>(sum);
        }
    }

    DEVICE F result(F a, F b, int) const {
        switch (KIND) {
            case SOFTMAX:
                return exp(a - first) * second;
            case LOG_SOFTMAX:
                return a - first - second;
            case SOFTMAX_GRAD:
                return b * (a - first);
            case LOG_SOFTMAX_GRAD:
                return a - exp(b) * first;
            default:
                return second * exp(a - first);
        }
    }

    DEVICE void end(const Args& args, long long row) const {
        if constexpr (KIND == LOGSUMEXP)
            *row_out<T>(args, row) = Number<T>::store(is_finite(first) ? first + second : first);
    }
};
