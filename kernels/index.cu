// Elements by position: gathers (x[indices], take, embeddings), and their gradients, sums of rows by index.
//
//   gather          A thread copies N adjacent elements, as bits, from where up to four index arrays say.
//   index_keys      The index arrays of each row as one number, which rows are sorted by (kernels/sort.cu).
//   scatter_runs    Sorted rows, in tiles of 16: a thread has N columns of a tile and adds up its runs of equal indices,
//   scatter_ends    in the order of the rows. A run within a tile is written at once; one that goes on in the next tile
//                   leaves its part, and scatter_ends adds these up, tile after tile. No atomics: the order is fixed.
//   scatter_along   The same for take_along_axis, where only elements of a line meet: a thread adds up a line's.
//   masked_pick     x[mask], where running sums of the mask say which place is whose,
//   masked_spread   and the other way round.
//   one_hot, triangle (tril and triu), padded (pad and roll), ramp (arange and linspace)
//
// Bytes: gather reads and writes each element of the result once, an index once per row (from a cache). Sums of rows read
// every row once and write the result twice: zeros first, then what rows have an index of.
//
// An index that is out of range counts from the other end, and wraps around: what CuPy does.
#include "array.cuh"

enum { MOST_INDICES = 4 };

DEVICE long long wrapped(long long i, long long length) {
    if (static_cast<unsigned long long>(i) < static_cast<unsigned long long>(length)) return i;
    i %= length;
    return i < 0 ? i + length : i;
}

// `Axes::offset` for several arrays at once: divisions are what it costs.
template <int COUNT>
DEVICE void find_offsets(const Axes& axes, long long index, const long long (&strides)[COUNT][MOST_AXES], int used,
                         long long (&offsets)[COUNT]) {
#pragma unroll
    for (int k = 0; k < COUNT; k++) offsets[k] = 0;
#pragma unroll
    for (int axis = MOST_AXES - 1; axis >= 0; axis--) {
        if (axis >= axes.count) continue;
        long long at = index;
        if (axis) {
            const unsigned length = axes.shape[axis];
            const long long next = index < 0x80000000ll ? unsigned(index) / length : index / length;
            at -= next * length;
            index = next;
        }
#pragma unroll
        for (int k = 0; k < COUNT; k++)
            if (k < used) offsets[k] += at * strides[k][axis];
    }
}

struct GatherArgs {
    const void* from;
    void* to;
    const void* indices[MOST_INDICES];
    Axes axes;                                     // of the result
    long long strides[2 + MOST_INDICES][MOST_AXES];  // of `from`, of `to`, of the indices
    long long steps[MOST_INDICES], lengths[MOST_INDICES];  // of the axes that are indexed
    long long count;                                       // of vectors
    int used;
};

template <class Word, class Index, int N>
__global__ void __launch_bounds__(256) gather(const __grid_constant__ GatherArgs args) {
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < args.count; i += gridDim.x * 256ll) {
        long long offsets[2 + MOST_INDICES];
        find_offsets(args.axes, i * N, args.strides, 2 + args.used, offsets);
        long long from = offsets[0];
#pragma unroll
        for (int k = 0; k < MOST_INDICES; k++) {
            if (k >= args.used) continue;
            from += wrapped(static_cast<const Index*>(args.indices[k])[offsets[2 + k]], args.lengths[k]) * args.steps[k];
        }
        *reinterpret_cast<Vector<Word, N>*>(static_cast<Word*>(args.to) + offsets[1]) =
            *reinterpret_cast<const Vector<Word, N>*>(static_cast<const Word*>(args.from) + from);
    }
}

struct IndexKeysArgs {
    const void* indices[MOST_INDICES];
    unsigned* to;
    Axes axes;  // of the rows, in C order
    long long strides[MOST_INDICES][MOST_AXES], lengths[MOST_INDICES];
    long long count;
    int used;
};

template <class Index>
__global__ void __launch_bounds__(256) index_keys(const __grid_constant__ IndexKeysArgs args) {
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < args.count; i += gridDim.x * 256ll) {
        long long key = 0, offsets[MOST_INDICES];
        find_offsets(args.axes, i, args.strides, args.used, offsets);
#pragma unroll
        for (int k = 0; k < MOST_INDICES; k++) {
            if (k >= args.used) continue;
            const long long index = static_cast<const Index*>(args.indices[k])[offsets[k]];
            key = key * args.lengths[k] + wrapped(index, args.lengths[k]);
        }
        args.to[i] = static_cast<unsigned>(key);
    }
}

enum { RUN_TILE = 16 };  // sorted rows that a thread adds up at a time

struct ScatterArgs {
    const void* from;
    void* to;
    const unsigned* keys;  // sorted
    const int* positions;  // which row each of them is
    void* heads;           // (tiles, columns): of runs that began in an earlier tile
    void* tails;           // of runs that go on in the next tile
    Axes rows, columns;
    long long row_strides[MOST_AXES];                                   // of `from`
    long long from_strides[MOST_AXES], to_strides[MOST_AXES];           // along the columns
    long long steps[MOST_INDICES], lengths[MOST_INDICES];               // of the indexed axes of `to`
    long long count, width;                                             // rows, columns
    int used, tiles;
};

// Where the result of a key begins.
DEVICE long long row_of(const ScatterArgs& args, unsigned key) {
    long long offset = 0;
#pragma unroll
    for (int k = MOST_INDICES - 1; k >= 0; k--) {
        if (k >= args.used) continue;
        const unsigned length = static_cast<unsigned>(args.lengths[k]), rest = key / length;
        offset += (key - rest * length) * args.steps[k];
        key = rest;
    }
    return offset;
}

// A thread takes N columns of a tile; the threads of a block lie along the columns.
template <class T, int N>
__global__ void __launch_bounds__(256) scatter_runs(const __grid_constant__ ScatterArgs args) {
    using F = Computed<T>;
    const long long vectors = args.width / N, work = vectors * args.tiles;
    for (long long at = blockIdx.x * 256ll + threadIdx.x; at < work; at += gridDim.x * 256ll) {
        const int tile = static_cast<int>(at / vectors);
        const long long column = (at - tile * vectors) * N;
        const long long from = args.columns.offset(column, args.from_strides);
        const long long to = args.columns.offset(column, args.to_strides);
        const long long first = tile * 1ll * RUN_TILE, stop = min(args.count, first + RUN_TILE);
        bool is_head = first > 0 && args.keys[first - 1] == args.keys[first];
        F sum[N] = {};
        for (long long i = first; i < stop; i++) {
            const unsigned key = args.keys[i];
            const Stored<T>* row = static_cast<const Stored<T>*>(args.from) + from;
            F x[N];
            load_vector<T, N>(row + args.rows.offset(args.positions[i], args.row_strides), true, N, x);
#pragma unroll
            for (int j = 0; j < N; j++) sum[j] += x[j];
            const bool ends = i + 1 == args.count || args.keys[i + 1] != key;
            if (!ends && i + 1 < stop) continue;
            if (ends && !is_head) {
                store_vector<T, N>(static_cast<Stored<T>*>(args.to) + to + row_of(args, key), true, N, sum);
            } else {
                F* part = static_cast<F*>(is_head ? args.heads : args.tails) + tile * args.width + column;
#pragma unroll
                for (int j = 0; j < N; j++) part[j] = sum[j];
            }
#pragma unroll
            for (int j = 0; j < N; j++) sum[j] = F(0);
            is_head = false;
        }
    }
}

// Where a run begins in a tile and goes on in the next: the tail, and all heads that continue it.
template <class T, int N>
__global__ void __launch_bounds__(256) scatter_ends(const __grid_constant__ ScatterArgs args) {
    using F = Computed<T>;
    const long long vectors = args.width / N, work = vectors * args.tiles;
    for (long long at = blockIdx.x * 256ll + threadIdx.x; at < work; at += gridDim.x * 256ll) {
        int tile = static_cast<int>(at / vectors);
        const long long column = (at - tile * vectors) * N, last = tile * 1ll * RUN_TILE + RUN_TILE - 1;
        if (last + 1 >= args.count) continue;
        const unsigned key = args.keys[last];
        if (args.keys[last + 1] != key) continue;                                        // it ends here
        if (tile > 0 && args.keys[last - RUN_TILE] == key) continue;                     // it began before
        F sum[N];
        const F* tail = static_cast<const F*>(args.tails) + tile * args.width + column;
#pragma unroll
        for (int j = 0; j < N; j++) sum[j] = tail[j];
        for (tile++; tile < args.tiles && args.keys[tile * 1ll * RUN_TILE] == key; tile++) {
            const F* head = static_cast<const F*>(args.heads) + tile * args.width + column;
#pragma unroll
            for (int j = 0; j < N; j++) sum[j] += head[j];
        }
        const long long to = args.columns.offset(column, args.to_strides) + row_of(args, key);
        store_vector<T, N>(static_cast<Stored<T>*>(args.to) + to, true, N, sum);
    }
}

struct AlongArgs {
    const void* from;
    void* to;
    const void* indices;
    Axes lines;
    long long strides[3][MOST_AXES];  // of `from`, of `to`, of the indices
    long long count, each, from_step, to_step, index_step, length;  // of lines; of indices in a line
};

template <class T, class Index>
__global__ void __launch_bounds__(256) scatter_along(const __grid_constant__ AlongArgs args) {
    for (long long line = blockIdx.x * 256ll + threadIdx.x; line < args.count; line += gridDim.x * 256ll) {
        long long offsets[3];
        find_offsets(args.lines, line, args.strides, 3, offsets);
        const Stored<T>* from = static_cast<const Stored<T>*>(args.from) + offsets[0];
        Stored<T>* to = static_cast<Stored<T>*>(args.to) + offsets[1];
        const Index* indices = static_cast<const Index*>(args.indices) + offsets[2];
        for (long long i = 0; i < args.each; i++) {
            Stored<T>& sum = to[wrapped(indices[i * args.index_step], args.length) * args.to_step];
            sum = Number<T>::store(Number<T>::load(sum) + Number<T>::load(from[i * args.from_step]));
        }
    }
}

struct MaskedArgs {
    const bool* mask;
    const long long* sums;  // how many are true up to each, itself included
    const void* from;       // masked_pick: like the mask; masked_spread: a row for each that is true
    void* to;               // the other way round
    long long count, width;  // of the mask; of a row
};

// Rows of `from` where the mask is true, one after the other.
template <class Word>
__global__ void __launch_bounds__(256) masked_pick(const __grid_constant__ MaskedArgs args) {
    const long long size = args.count * args.width;
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < size; i += gridDim.x * 256ll) {
        const long long row = i / args.width, column = i - row * args.width;
        if (args.mask[row])
            static_cast<Word*>(args.to)[(args.sums[row] - 1) * args.width + column] =
                static_cast<const Word*>(args.from)[i];
    }
}

// Rows of `to` where the mask is true become those of `from`, one after the other; the others stay.
template <class Word>
__global__ void __launch_bounds__(256) masked_spread(const __grid_constant__ MaskedArgs args) {
    const long long size = args.count * args.width;
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < size; i += gridDim.x * 256ll) {
        const long long row = i / args.width, column = i - row * args.width;
        if (args.mask[row])
            static_cast<Word*>(args.to)[i] =
                static_cast<const Word*>(args.from)[(args.sums[row] - 1) * args.width + column];
    }
}

struct OneHotArgs {
    const void* indices;
    void* to;
    long long count, classes;
};

template <class T, class Index>
__global__ void __launch_bounds__(256) one_hot(const __grid_constant__ OneHotArgs args) {
    const long long size = args.count * args.classes;
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < size; i += gridDim.x * 256ll) {
        const long long row = i / args.classes, column = i - row * args.classes;
        const bool is_hot = static_cast<const Index*>(args.indices)[row] == static_cast<Index>(column);
        static_cast<Stored<T>*>(args.to)[i] = Number<T>::store(static_cast<Computed<T>>(is_hot));
    }
}

struct RampArgs {
    void* to;
    long long size;
    double start, step, last;  // the bits of integers where F is one
    int has_last;              // whether the last number is `last`
};

// start + i * step, computed in F, in two steps that round, as NumPy does it.
template <class T, class F>
__global__ void __launch_bounds__(256) ramp(const __grid_constant__ RampArgs args) {
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < args.size; i += gridDim.x * 256ll) {
        F value;
        if constexpr (sizeof(F) == 4)
            value = __fadd_rn(static_cast<F>(args.start), __fmul_rn(static_cast<F>(i), static_cast<F>(args.step)));
        else if constexpr (F(0.5) != F(0))
            value = __dadd_rn(args.start, __dmul_rn(static_cast<F>(i), args.step));
        else
            value = __double_as_longlong(args.start) + i * __double_as_longlong(args.step);
        if (F(0.5) != F(0) && args.has_last && i == args.size - 1) value = static_cast<F>(args.last);
        static_cast<Stored<T>*>(args.to)[i] = Number<T>::store(static_cast<Computed<T>>(value));
    }
}

struct TriangleArgs {
    const void* from;
    void* to;
    Axes axes;  // the last two are those of the matrices
    long long strides[MOST_AXES];
    long long size, k;
    int upper;
};

template <class Word>
__global__ void __launch_bounds__(256) triangle(const __grid_constant__ TriangleArgs args) {
    const int last = args.axes.count - 1;
    const long long columns = args.axes.shape[last], rows = args.axes.shape[last - 1];
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < args.size; i += gridDim.x * 256ll) {
        const long long line = i / columns, diagonal = i - line * columns - line % rows;
        Word value = 0;
        if (args.upper ? diagonal >= args.k : diagonal <= args.k)
            value = static_cast<const Word*>(args.from)[args.axes.offset(i, args.strides)];
        static_cast<Word*>(args.to)[i] = value;
    }
}

struct PaddedArgs {
    const void* from;
    void* to;
    Axes axes;  // of the result
    long long strides[MOST_AXES];                // of the source
    int lengths[MOST_AXES], before[MOST_AXES];   // of the source; how many elements of the result go before it
    long long size;
    int mode;
    unsigned char value[8];
};

enum { CONSTANT, EDGE, REFLECT, WRAP };

template <class Word>
__global__ void __launch_bounds__(256) padded(const __grid_constant__ PaddedArgs args) {
    Word value = 0;
#pragma unroll
    for (int i = sizeof(Word) - 1; i >= 0; i--)
        value = static_cast<Word>((static_cast<unsigned long long>(value) << 8) | args.value[i]);
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < args.size; i += gridDim.x * 256ll) {
        long long rest = i, from = 0;
        bool inside = true;
        for (int axis = args.axes.count - 1; axis >= 0; axis--) {
            const long long next = rest / args.axes.shape[axis], length = args.lengths[axis];
            long long at = rest - next * args.axes.shape[axis] - args.before[axis];
            rest = next;
            if (at < 0 || at >= length) {
                if (args.mode == CONSTANT) {
                    inside = false;
                } else if (args.mode == EDGE) {
                    at = at < 0 ? 0 : length - 1;
                } else if (args.mode == WRAP) {
                    at = wrapped(at, length);
                } else if (length == 1) {
                    at = 0;
                } else {
                    at = wrapped(at, 2 * length - 2);
                    if (at >= length) at = 2 * length - 2 - at;
                }
            }
            from += at * args.strides[axis];
        }
        static_cast<Word*>(args.to)[i] = inside ? static_cast<const Word*>(args.from)[from] : value;
    }
}
