// How arrays lie in memory, and loops over memory in whole vectors.
//
// What works element by element does not ask for an order of axes, only that all its arrays lie alike and without gaps.
#pragma once
#include "array.h"

#include <type_traits>
#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace {

template <int N> using Constant = std::integral_constant<int, N>;

// Channels, side by side in memory again and again, repeat every `width` elements, which are whole vectors.
inline long repeat_of(long channels) {
    long width = channels;
    while (width % WIDTH) width += channels;
    while (width < 4 * WIDTH) width *= 2;
    return width;
}

// `values` of the channels, repeated to that width.
inline void repeat(const float* values, long channels, float* out, long width) {
    for (long i = 0; i < width; i += channels)
        for (long c = 0; c < channels; c++) out[i + c] = values[c];
}

// What every channel's columns hold, added up.
inline void fold(const float* columns, long width, long channels, float* out) {
    for (long c = 0; c < channels; c++) out[c] = columns[c];
    for (long i = channels; i < width; i += channels)
        for (long c = 0; c < channels; c++) out[c] += columns[i + c];
}

inline long size_of(const Array* array) {
    long size = 1;
    for (int axis = 0; axis < array->ndim; axis++) size *= array->shape[axis];
    return size;
}

// Whether arrays of one shape have their elements at the same places.
inline bool alike(const Array* a, const Array* b) {
    for (int axis = 0; axis < a->ndim; axis++)
        if (a->shape[axis] > 1 && a->strides[axis] != b->strides[axis]) return false;
    return true;
}

// The first `count` lanes from memory, zeros in the others.
inline Vector load_some(const float* p, long count) {
    if (count >= WIDTH) return load(p);
#if defined(__AVX512F__)
    return _mm512_maskz_loadu_ps((1 << count) - 1, p);
#else
    float lanes[WIDTH] = {};
    for (long i = 0; i < count; i++) lanes[i] = p[i];
    return load(lanes);
#endif
}

inline void store_some(float* p, Vector v, long count) {
    if (count >= WIDTH) {
        store(p, v);
        return;
    }
#if defined(__AVX512F__)
    _mm512_mask_storeu_ps(p, (1 << count) - 1, v);
#else
    float lanes[WIDTH];
    store(lanes, v);
    for (long i = 0; i < count; i++) p[i] = lanes[i];
#endif
}

// The first `count` lanes of v, zeros in the others.
inline Vector keep_some(Vector v, long count) {
    if (count >= WIDTH) return v;
#if defined(__AVX512F__)
    return _mm512_maskz_mov_ps((1 << count) - 1, v);
#else
    float lanes[WIDTH];
    store(lanes, v);
    for (long i = count; i < WIDTH; i++) lanes[i] = 0;
    return load(lanes);
#endif
}

// a0, b0, a1, b1, ...: the first half and the second.
inline void interleave(Vector a, Vector b, Vector& first, Vector& second) {
#if defined(__AVX512F__)
    first = _mm512_permutex2var_ps(a, _mm512_set_epi32(23, 7, 22, 6, 21, 5, 20, 4, 19, 3, 18, 2, 17, 1, 16, 0), b);
    second =
        _mm512_permutex2var_ps(a, _mm512_set_epi32(31, 15, 30, 14, 29, 13, 28, 12, 27, 11, 26, 10, 25, 9, 24, 8), b);
#else
    float left[WIDTH], right[WIDTH], both[2 * WIDTH];
    store(left, a);
    store(right, b);
    for (int i = 0; i < WIDTH; i++) both[2 * i] = left[i], both[2 * i + 1] = right[i];
    first = load(both), second = load(both + WIDTH);
#endif
}

// A square of vectors as rows becomes the one of its columns. Cards, cut into halves and shuffled one by one, move as
// their numbers' bits rotate; after as many times as a lane's number has bits, row and lane have changed places.
inline void transpose(Vector (&square)[WIDTH]) {
    for (int bits = 1; bits < WIDTH; bits *= 2) {
        Vector shuffled[WIDTH];
        for (int i = 0; i < WIDTH / 2; i++)
            interleave(square[i], square[i + WIDTH / 2], shuffled[2 * i], shuffled[2 * i + 1]);
        for (int i = 0; i < WIDTH; i++) square[i] = shuffled[i];
    }
}

// step(at, lanes) for vectors from `start` to `stop`. All but the last are whole, and a constant tells the compiler so.
template <class Step> inline void by_vectors(long start, long stop, Step step) {
    long at = start;
    for (; at + WIDTH <= stop; at += WIDTH) step(at, long(WIDTH));
    if (at < stop) step(at, stop - at);
}

// The sums of `S` terms over `count` elements: term(at, lanes, out) gives a vector of each.
template <int S, class Term> inline void sum_over(long count, float (&sums)[S], Term term) {
    constexpr int CHAINS = 4;  // additions wait for one another, so several sums are under way
    Vector totals[CHAINS][S] = {}, terms[S];
    long at = 0;
    for (; at + CHAINS * WIDTH <= count; at += CHAINS * WIDTH)
        for (int chain = 0; chain < CHAINS; chain++) {
            term(at + chain * WIDTH, long(WIDTH), terms);
            for (int s = 0; s < S; s++) totals[chain][s] += terms[s];
        }
    by_vectors(at, count, [&](long i, long lanes) {
        term(i, lanes, terms);
        for (int s = 0; s < S; s++) totals[0][s] += keep_some(terms[s], lanes);
    });
    for (int s = 0; s < S; s++) sums[s] = sum_of((totals[0][s] + totals[1][s]) + (totals[2][s] + totals[3][s]));
}

// Memory of `count` elements seen as rows of `width` (a multiple of the vectors' width), the last one cut off: the sums
// of `S` terms in each column. term(at, column, lanes, out) gives a vector of each.
template <int S, class Term> inline void sum_columns(long count, long width, float* const (&sums)[S], Term term) {
    constexpr int CHAINS = 4;
    long whole = count / width * width;
    Vector terms[S];
    auto columns = [&](long first, auto chains) {
        Vector totals[decltype(chains)::value][S] = {};
        for (long row = 0; row < whole; row += width)
            for (int chain = 0; chain < chains; chain++) {
                term(row + first + chain * WIDTH, first + chain * WIDTH, long(WIDTH), terms);
                for (int s = 0; s < S; s++) totals[chain][s] += terms[s];
            }
        for (int chain = 0; chain < chains; chain++)
            for (int s = 0; s < S; s++) store(sums[s] + first + chain * WIDTH, totals[chain][s]);
    };
    long first = 0;
    for (; first + CHAINS * WIDTH <= width; first += CHAINS * WIDTH) columns(first, Constant<CHAINS>{});
    for (; first < width; first += WIDTH) columns(first, Constant<1>{});
    by_vectors(whole, count, [&](long at, long lanes) {
        term(at, at - whole, lanes, terms);
        for (int s = 0; s < S; s++) {
            float* sum = sums[s] + at - whole;
            store(sum, load(sum) + keep_some(terms[s], lanes));
        }
    });
}

}  // namespace
