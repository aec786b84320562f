// The update rules of the optimizers (gpunet/ops/optimizer.py), in one pass over memory and one call for all parameters.
//
// The parameters lie wherever they are; the values that a rule keeps for them lie one after the other in one array for
// each quantity. A range [start, stop) counts elements in that order. A rule is a function of vectors: it takes those of
// a parameter and of its gradient, changes those of the state, and returns the new parameter. What is left at the end
// of a range goes through the same function in a vector that is filled up, so results do not depend on ranges.
#include "array.h"

constexpr int STATES = 3;  // the most quantities that a rule keeps; absent ones are null

inline Vector square_root(Vector v) {
    for (int i = 0; i < WIDTH; i++) v[i] = std::sqrt(v[i]);
    return v;
}

static bool is_row(const Array* a) { return a->ndim == 1 && (a->shape[0] < 2 || a->strides[0] == long(sizeof(float))); }

// Whether the arrays are rows of one dtype, which the caller knows to be float32, and of matching lengths.
static bool fit(const Arrays* params, const Arrays* grads, const Array* const (&states)[STATES]) {
    long size = 0;
    if (params->size != grads->size) return false;
    for (long i = 0; i < params->size; i++) {
        const Array *p = (*params)[i], *g = (*grads)[i];
        if (!is_row(p) || !is_row(g) || p->shape[0] != g->shape[0]) return false;
        if (p->dtype != (*params)[0]->dtype || g->dtype != p->dtype) return false;
        size += p->shape[0];
    }
    for (const Array* s : states)
        if (s != gn_none && (!is_row(s) || s->shape[0] != size || s->dtype != (*params)[0]->dtype)) return false;
    return true;
}

// What all rules begin with: the direction of the gradient, and the weight decay in it.
struct Gradient {
    float decay;
    bool maximize;

    Vector operator()(Vector g, Vector p) const {
        if (maximize) g = -g;
        return decay == 0 ? g : g + decay * p;
    }
};

template <class Rule> void update_row(float* p, const float* g, float* const* state, long n, const Rule& rule) {
    Vector s[STATES];
    long i = 0;
    for (; i + WIDTH <= n; i += WIDTH) {
        for (int k = 0; k < STATES; k++)
            if (state[k]) s[k] = load(state[k] + i);
        store(p + i, rule(load(p + i), load(g + i), s));
        for (int k = 0; k < STATES; k++)
            if (state[k]) store(state[k] + i, s[k]);
    }
    if (i == n) return;
    float row[STATES + 2][WIDTH] = {};
    size_t bytes = (n - i) * sizeof(float);
    memcpy(row[STATES], p + i, bytes);
    memcpy(row[STATES + 1], g + i, bytes);
    for (int k = 0; k < STATES; k++) {
        if (state[k]) memcpy(row[k], state[k] + i, bytes);
        s[k] = load(row[k]);
    }
    store(row[STATES], rule(load(row[STATES]), load(row[STATES + 1]), s));
    memcpy(p + i, row[STATES], bytes);
    for (int k = 0; k < STATES; k++) {
        store(row[k], s[k]);
        if (state[k]) memcpy(state[k] + i, row[k], bytes);
    }
}

// Apply `rule` to the elements [start, stop) of all parameters. False, and nothing is changed, if arrays do not fit.
template <class Rule>
bool update(const Arrays* params, const Arrays* grads, const Array* const (&states)[STATES], long start, long stop, const Rule& rule) {
    if (!fit(params, grads, states)) return false;
    long first = 0;  // of the parameter's elements, in the order of all
    for (long i = 0; i < params->size && first < stop; i++) {
        long n = (*params)[i]->shape[0];
        long from = start > first ? start - first : 0, to = stop - first < n ? stop - first : n;
        if (from < to) {
            float* state[STATES];
            for (int k = 0; k < STATES; k++)
                state[k] = states[k] == gn_none ? nullptr : states[k]->floats() + first + from;
            update_row((*params)[i]->floats() + from, (*grads)[i]->floats() + from, state, to - from, rule);
        }
        first += n;
    }
    return true;
}

KERNEL long sgd(const Arrays* params, const Arrays* grads, const Array* momentum_buffer, long start, long stop, float lr, float momentum, float share, float weight_decay, int nesterov, int maximize, int first) {
    Gradient gradient{weight_decay, maximize != 0};
    if (momentum_buffer == gn_none)
        return update(params, grads, {gn_none, gn_none, gn_none}, start, stop,
                      [=](Vector p, Vector g, Vector*) { return p - lr * gradient(g, p); });
    return update(params, grads, {momentum_buffer, gn_none, gn_none}, start, stop, [=](Vector p, Vector g, Vector* s) {
        g = gradient(g, p);
        s[0] = first ? g : momentum * s[0] + share * g;
        return p - lr * (nesterov ? g + momentum * s[0] : s[0]);
    });
}

KERNEL long adam(const Arrays* params, const Arrays* grads, const Array* exp_avg, const Array* exp_avg_sq, const Array* max_exp_avg_sq, long start, long stop, float rate, float share1, float beta2, float share2, float eps, float weight_decay, float shrink, int maximize) {
    Gradient gradient{weight_decay, maximize != 0};
    auto averages = [=](Vector p, Vector g, Vector* s) {
        g = gradient(g, p);
        s[0] += (g - s[0]) * share1;
        s[1] = s[1] * beta2 + g * g * share2;
    };
    if (max_exp_avg_sq == gn_none)
        return update(params, grads, {exp_avg, exp_avg_sq, gn_none}, start, stop, [=](Vector p, Vector g, Vector* s) {
            averages(p, g, s);
            return p * shrink - rate * (s[0] / (square_root(s[1]) + eps));
        });
    return update(params, grads, {exp_avg, exp_avg_sq, max_exp_avg_sq}, start, stop, [=](Vector p, Vector g, Vector* s) {
        averages(p, g, s);
        s[2] = larger(s[2], s[1]);
        return p * shrink - rate * (s[0] / (square_root(s[2]) + eps));
    });
}

KERNEL long rmsprop(const Arrays* params, const Arrays* grads, const Array* square_avg, const Array* grad_avg, const Array* momentum_buffer, long start, long stop, float lr, float alpha, float share, float eps, float weight_decay, float momentum, int maximize) {
    Gradient gradient{weight_decay, maximize != 0};
    bool centered = grad_avg != gn_none, repeats = momentum_buffer != gn_none;
    return update(params, grads, {square_avg, grad_avg, momentum_buffer}, start, stop, [=](Vector p, Vector g, Vector* s) {
        g = gradient(g, p);
        s[0] = s[0] * alpha + g * g * share;
        Vector v = s[0];
        if (centered) {
            s[1] += (g - s[1]) * share;
            v -= s[1] * s[1];
            v = select(v < 0, Vector{}, v);  // a variance, which rounding may have made negative
        }
        Vector step = g / (square_root(v) + eps);
        if (!repeats) return p - lr * step;
        s[2] = s[2] * momentum + step;
        return p - lr * s[2];
    });
}

KERNEL long adagrad(const Arrays* params, const Arrays* grads, const Array* sum, long start, long stop, float rate, float eps, float weight_decay, int maximize) {
    Gradient gradient{weight_decay, maximize != 0};
    return update(params, grads, {sum, gn_none, gn_none}, start, stop, [=](Vector p, Vector g, Vector* s) {
        g = gradient(g, p);
        s[0] += g * g;
        return p - rate * (g / (square_root(s[0]) + eps));
    });
}
