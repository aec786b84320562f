// The cross-entropy of rows of logits with class indices, and its gradient, whose exponentials are computed again: that
// is cheaper than keeping them.
#include "rows.h"

namespace {

// What a row's loss is multiplied by in the mean: 1 over the number of those that are not ignored.
double share_of(const int64_t* targets, long rows, long ignore) {
    long kept = 0;
    for (long row = 0; row < rows; row++) kept += targets[row] != ignore;
    return 1.0 / kept;
}

}  // namespace

// The position of the first of the indices that is neither from 0 to count - 1 nor `ignore`; -1 if there is none.
KERNEL long first_outside(const Array* indices, long size, long count, long ignore) {
    const int64_t* values = indices->data<int64_t>();
    bool outside = false;
    for (long i = 0; i < size; i++) outside |= uint64_t(values[i]) >= uint64_t(count) && values[i] != ignore;
    for (long i = 0; outside; i++)
        if (uint64_t(values[i]) >= uint64_t(count) && values[i] != ignore) return i;
    return -1;
}

// How many rows name a class that does not exist; their losses are left out.
KERNEL long cross_entropy(const Array* x, const Array* target, const Array* losses, long ignore, long start, long stop) {
    long classes = x->shape[1], wrong = 0;
    for (long row = start; row < stop; row++) {
        const float* logits = x->floats() + row * classes;
        int64_t wanted = target->data<int64_t>()[row];
        float& loss = losses->floats()[row];
        if (wanted == ignore) {
            loss = 0;
        } else if (uint64_t(wanted) >= uint64_t(classes)) {
            wrong++;
        } else {
            float most = largest_of_row(logits, classes);
            loss = logf(exponentials(logits, classes, most, nullptr)) - (logits[wanted] - most);
        }
    }
    return wrong;
}

// The sum of the losses, or their mean over the rows that are not ignored.
KERNEL void cross_entropy_total(const Array* losses, const Array* target, const Array* total, long ignore, int mean) {
    long rows = losses->shape[0];
    double sum = 0;
    for (long row = 0; row < rows; row++) sum += losses->floats()[row];
    *total->floats() = mean ? sum * share_of(target->data<int64_t>(), rows, ignore) : sum;
}

// Both at once, for few rows; no total if one of them is wrong.
KERNEL long cross_entropy_of_all(const Array* x, const Array* target, const Array* losses, const Array* total, long ignore, int mean) {
    long wrong = cross_entropy(x, target, losses, ignore, 0, x->shape[0]);
    if (!wrong) cross_entropy_total(losses, target, total, ignore, mean);
    return wrong;
}

// g is the gradient of each row's loss (its axis may have a stride of 0), or of their sum or mean. A class that does not
// exist makes its row NaN.
KERNEL void cross_entropy_grad(const Array* g, const Array* x, const Array* target, const Array* dx, long ignore, int mean, long start, long stop) {
    long classes = x->shape[1], step = g->ndim ? g->strides[0] : 0;
    const int64_t* targets = target->data<int64_t>();
    double share = mean ? share_of(targets, x->shape[0], ignore) : 1;
    for (long row = start; row < stop; row++) {
        const float* logits = x->floats() + row * classes;
        float* to = dx->floats() + row * classes;
        float factor = *reinterpret_cast<const float*>(g->bytes + row * step) * share;
        int64_t wanted = targets[row];
        bool exists = uint64_t(wanted) < uint64_t(classes);
        if (wanted == ignore || !exists) {
            float value = wanted == ignore ? factor * 0 : NAN;
            for (long c = 0; c < classes; c++) to[c] = value;
            continue;
        }
        float scale = factor / exponentials(logits, classes, largest_of_row(logits, classes), to);
        by_vectors(0, classes, [&](long at, long lanes) {
            store_some(to + at, load_some(to + at, lanes) * scale, lanes);
        });
        to[wanted] -= factor;
    }
}
