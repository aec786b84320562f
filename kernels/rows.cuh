// Reductions along one axis of an array, followed by something for each of its elements: what softmax and the losses of
// classes share. gpunet/ops/row_kernels.py launches them.
//
// A Body says what is done (see softmax.cu). It is told of the row's elements, those of each thread, in `add`; makes of
// all threads' findings the row's in `finish`; and gives each element's result in `result`. So that every element is
// read from memory once and written once, the row stays where it can be read again:
//
//   rows_in_registers   in registers: LANES threads for a row, PER vectors each
//   rows_long           HELD: in shared memory, where each thread keeps what it copied there itself, so that no barrier
//                       is needed for it; else nowhere: a row too long for that is read twice
//   columns             for an axis along which elements are not adjacent, where they are along another: COLUMNS threads
//                       side by side, those below each other share columns. PER as above, 0 for reading twice.
//
// A row need not start at a multiple of 16 bytes: it is taken as starting up to 15 bytes before, and what does not
// belong to it is left out. Only in the vectors at its two ends is anything done element by element.
#pragma once
#include "array.cuh"
#include "ptx/mma.cuh"

extern __shared__ __align__(1024) unsigned char gn_shared[];

struct RowArgs {
    const void* in[3];
    void* out;
    Axes rows;  // the axes of the array without that of the rows
    long long in_strides[3][MOST_AXES], out_strides[MOST_AXES];
    long long in_step[3], out_step;  // between the elements of a row
    long long count;                 // of rows; for `columns`, of groups of them
    long long length;                // of a row
};

template <class F>
DEVICE bool is_finite(F x) {
    return x - x == F(0);
}

// The sum of exponentials of numbers as they come, relative to the largest so far.
template <class F>
struct ExponentialSum {
    F top = -infinity<F>(), sum = F(0);

    template <int PER, int N>
    DEVICE void add(const F (&x)[PER][N]) {
        F most = top;
#pragma unroll
        for (int p = 0; p < PER; p++)
#pragma unroll
            for (int i = 0; i < N; i++) most = Larger::of(x[p][i], most);
        const F base = most == -infinity<F>() ? F(0) : most;
        sum *= exp(top - base);
        top = most;
#pragma unroll
        for (int p = 0; p < PER; p++)
#pragma unroll
            for (int i = 0; i < N; i++) sum += exp(x[p][i] - base);
    }

    // That of all threads of the group. If the largest is infinite, the sum is of no use.
    template <class Group>
    DEVICE void finish(Group& group) {
        const F most = group.template reduce<Larger, 0>(top);
        sum = group.template reduce<Add, 1>(is_finite(most) ? sum * exp(top - most) : sum);
        top = most;
    }
};

// --- the threads that share a row ---

// LANES adjacent threads: a part of a warp, or several warps, which then are the block.
template <int LANES, class F>
struct RowGroup {
    static constexpr int WARPS = LANES > 32 ? LANES / 32 : 1;
    F (*slots)[WARPS];

    template <class Operation, int WHICH>
    DEVICE F reduce(F x) {
        if constexpr (LANES <= 32)
            return reduce_lanes<Operation, LANES>(x);
        else
            return reduce_block<Operation, LANES>(x, slots[WHICH]);
    }

    // Before the next row.
    DEVICE void next() {
        if constexpr (LANES > 32) __syncthreads();
    }
};

// Those threads of a block of 256 whose numbers are equal modulo COLUMNS. A thread has VECTOR columns.
template <int COLUMNS, int VECTOR, class F>
struct ColumnGroup {
    F (*slots)[8][COLUMNS * VECTOR];
    int column;  // which of its columns a thread works on

    template <class Operation, int WHICH>
    DEVICE F reduce(F x) {
#pragma unroll
        for (int flip = 16; flip >= COLUMNS; flip /= 2) x = Operation::of(x, __shfl_xor_sync(0xffffffffu, x, flip));
        const int at = threadIdx.x % COLUMNS * VECTOR + column;
        if (threadIdx.x % 32 < COLUMNS) slots[WHICH][threadIdx.x / 32][at] = x;
        __syncthreads();
        x = slots[WHICH][0][at];
#pragma unroll
        for (int warp = 1; warp < 8; warp++) x = Operation::of(x, slots[WHICH][warp][at]);
        return x;
    }
};

constexpr int MOST_REDUCTIONS = 4;  // of a row

// --- rows of adjacent elements ---

// One row of the arrays, cut into vectors of V elements. `before`: how many elements the first one lacks at its start.
template <class T, int V>
struct Row {
    using F = Computed<T>;
    int length, before, slots;

    // V = 1 is for arrays whose rows do not all begin at the same place within 16 bytes.
    DEVICE Row(const Stored<T>* first, int length) : length(length) {
        before = static_cast<int>(reinterpret_cast<unsigned long long>(first) / sizeof(Stored<T>) % V);
        slots = length ? (length + before + V - 1) / V : 0;
    }
    DEVICE int start(int slot) const { return slot * V - before; }
    DEVICE bool is_whole(int slot) const { return start(slot) >= 0 && start(slot) + V <= length; }

    DEVICE void load(const Stored<T>* row, int slot, F neutral, F (&x)[V]) const {
        const int at = start(slot);
        if (is_whole(slot)) {
            load_vector<T, V>(row + at, true, V, x);
        } else {
#pragma unroll
            for (int i = 0; i < V; i++)
                x[i] = at + i >= 0 && at + i < length ? F(Number<T>::load(row[at + i])) : neutral;
        }
    }

    DEVICE void store(Stored<T>* row, int slot, const F (&x)[V]) const {
        const int at = start(slot);
        if (is_whole(slot)) {
            store_vector<T, V>(row + at, true, V, x);
        } else {
#pragma unroll
            for (int i = 0; i < V; i++)
                if (at + i >= 0 && at + i < length) row[at + i] = Number<T>::store(x[i]);
        }
    }
};

template <class T>
DEVICE const Stored<T>* row_in(const RowArgs& args, int which, long long row) {
    return static_cast<const Stored<T>*>(args.in[which]) + args.rows.offset(row, args.in_strides[which]);
}

template <class T>
DEVICE Stored<T>* row_out(const RowArgs& args, long long row) {
    return static_cast<Stored<T>*>(args.out) + args.rows.offset(row, args.out_strides);
}

template <int LANES>
constexpr int BLOCK_OF = LANES < 128 ? 128 : LANES;

template <class Body, int V, int LANES, int PER>
__global__ void __launch_bounds__(BLOCK_OF<LANES>, 512 / BLOCK_OF<LANES>)
    rows_in_registers(const __grid_constant__ typename Body::Args args) {
    using T = typename Body::Type;
    using F = Computed<T>;
    constexpr int ROWS = BLOCK_OF<LANES> / LANES;
    constexpr bool TWO = Body::INPUTS == 2;
    __shared__ F slots[MOST_REDUCTIONS][RowGroup<LANES, F>::WARPS];
    RowGroup<LANES, F> group{slots};
    const int lane = threadIdx.x % LANES;
    for (long long first = blockIdx.x * static_cast<long long>(ROWS); first < args.count;
         first += gridDim.x * static_cast<long long>(ROWS)) {
        const bool active = first + threadIdx.x / LANES < args.count;
        const long long number = active ? first + threadIdx.x / LANES : first;
        const Stored<T>* a_row = row_in<T>(args, 0, number);
        const Stored<T>* b_row = TWO ? row_in<T>(args, 1, number) : nullptr;
        const Row<T, V> row(a_row, active ? static_cast<int>(args.length) : 0);
        F a[PER][V], b[TWO ? PER : 1][V];
        int starts[PER];
#pragma unroll
        for (int p = 0; p < PER; p++) {
            const int slot = p * LANES + lane;
            starts[p] = row.start(slot);
            row.load(a_row, slot, Body::neutral(), a[p]);
            if constexpr (TWO) row.load(b_row, slot, Body::neutral(), b[p]);
        }
        Body body(args, number);
        body.add(a, b, starts, row.length);
        body.finish(group);
        if constexpr (Body::WRITES) {
            Stored<T>* out = row_out<T>(args, number);
#pragma unroll
            for (int p = 0; p < PER; p++) {
                F y[V];
#pragma unroll
                for (int i = 0; i < V; i++) y[i] = body.result(a[p][i], b[TWO ? p : 0][i], starts[p] + i);
                row.store(out, p * LANES + lane, y);
            }
        }
        if (active && lane == 0) body.end(args, number);
        group.next();
    }
}

constexpr int LONG_THREADS = 512;

template <class Body, int V, bool HELD>
__global__ void __launch_bounds__(LONG_THREADS, 2) rows_long(const __grid_constant__ typename Body::Args args) {
    using T = typename Body::Type;
    using F = Computed<T>;
    constexpr bool TWO = Body::INPUTS == 2;
    constexpr int BYTES = V * sizeof(Stored<T>);
    static_assert(!HELD || BYTES == 16, "rows in shared memory are copied 16 bytes at a time");
    __shared__ F slots[MOST_REDUCTIONS][RowGroup<LONG_THREADS, F>::WARPS];
    RowGroup<LONG_THREADS, F> group{slots};
    for (long long number = blockIdx.x; number < args.count; number += gridDim.x) {
        const Stored<T>* in[2];
        in[0] = row_in<T>(args, 0, number);
        in[1] = TWO ? row_in<T>(args, 1, number) : nullptr;
        const Row<T, V> row(in[0], static_cast<int>(args.length));
        const int held = (static_cast<int>(args.length) + 2 * V - 2) / V;  // vectors of any row, wherever it begins
        if constexpr (HELD) {
            for (int slot = threadIdx.x; slot < row.slots; slot += LONG_THREADS) {
#pragma unroll
                for (int i = 0; i < Body::INPUTS; i++) {
                    unsigned char* to = gn_shared + (static_cast<long long>(i) * held + slot) * BYTES;
                    if (row.is_whole(slot)) {
                        cp_async<16>(shared_address(to), in[i] + row.start(slot), 16);
                    } else {
                        F x[V];
                        row.load(in[i], slot, Body::neutral(), x);
                        store_vector<T, V>(reinterpret_cast<Stored<T>*>(to), true, V, x);
                    }
                }
            }
            cp_async_commit();
            cp_async_wait<0>();
        }
        const auto read = [&](int which, int slot, F(&x)[V]) {
            if constexpr (HELD) {
                const unsigned char* from = gn_shared + (static_cast<long long>(which) * held + slot) * BYTES;
                load_vector<T, V>(reinterpret_cast<const Stored<T>*>(from), true, V, x);
            } else {
                row.load(in[which], slot, Body::neutral(), x);
            }
        };
        Body body(args, number);
        for (int slot = threadIdx.x; slot < row.slots; slot += LONG_THREADS) {
            F a[1][V], b[1][V];
            const int start[1] = {row.start(slot)};
            read(0, slot, a[0]);
            if constexpr (TWO) read(1, slot, b[0]);
            body.add(a, b, start, row.length);
        }
        body.finish(group);
        if constexpr (Body::WRITES) {
            Stored<T>* out = row_out<T>(args, number);
            for (int slot = threadIdx.x; slot < row.slots; slot += LONG_THREADS) {
                F a[V], b[V], y[V];
                read(0, slot, a);
                if constexpr (TWO) read(1, slot, b);
#pragma unroll
                for (int i = 0; i < V; i++) y[i] = body.result(a[i], b[TWO ? i : 0], row.start(slot) + i);
                row.store(out, slot, y);
            }
        }
        if (threadIdx.x == 0) body.end(args, number);
        group.next();
    }
}

// --- columns ---

// args.rows: the last axis is that along which elements are adjacent, in all arrays, its length a multiple of V.
template <class Body, int V, int COLUMNS, int PER>
__global__ void __launch_bounds__(256) columns(const __grid_constant__ typename Body::Args args) {
    using T = typename Body::Type;
    using F = Computed<T>;
    constexpr bool TWO = Body::INPUTS == 2;
    constexpr int DEEP = 256 / COLUMNS, HOLD = PER ? PER : 4;
    __shared__ F slots[MOST_REDUCTIONS][8][COLUMNS * V];
    const int width = args.rows.shape[args.rows.count - 1], groups = (width + COLUMNS * V - 1) / (COLUMNS * V);
    const int depth = threadIdx.x / COLUMNS;
    for (long long unit = blockIdx.x; unit < args.count; unit += gridDim.x) {
        const int column = static_cast<int>(unit % groups * COLUMNS + threadIdx.x % COLUMNS) * V;
        const bool active = column < width;
        const long long number = unit / groups * width + (active ? column : 0);
        const int length = active ? static_cast<int>(args.length) : 0;
        const Stored<T>* in[2];
        in[0] = row_in<T>(args, 0, number);
        in[1] = TWO ? row_in<T>(args, 1, number) : nullptr;
        Stored<T>* out = Body::WRITES ? row_out<T>(args, number) : nullptr;
        const auto read = [&](int which, int at, F(&x)[V]) {
            if (at < length) {
                load_vector<T, V>(in[which] + at * args.in_step[which], true, V, x);
            } else {
#pragma unroll
                for (int i = 0; i < V; i++) x[i] = Body::neutral();
            }
        };
        Body body[V];
#pragma unroll
        for (int i = 0; i < V; i++) body[i] = Body(args, number + (active ? i : 0));
        // Turned, so that each column's elements are together.
        F a[V][HOLD][1], b[V][HOLD][1];
        int starts[HOLD];
        const auto gather = [&](int from) {
#pragma unroll
            for (int p = 0; p < HOLD; p++) {
                F x[V];
                starts[p] = from + p * DEEP;
                read(0, starts[p], x);
#pragma unroll
                for (int i = 0; i < V; i++) a[i][p][0] = x[i];
                if constexpr (TWO) {
                    read(1, starts[p], x);
#pragma unroll
                    for (int i = 0; i < V; i++) b[i][p][0] = x[i];
                }
            }
        };
        const auto write = [&] {
#pragma unroll
            for (int p = 0; p < HOLD; p++) {
                F y[V];
#pragma unroll
                for (int i = 0; i < V; i++) y[i] = body[i].result(a[i][p][0], b[TWO ? i : 0][TWO ? p : 0][0], starts[p]);
                if (starts[p] < length) store_vector<T, V>(out + starts[p] * args.out_step, true, V, y);
            }
        };
        for (int from = depth; from < length; from += DEEP * HOLD) {
            gather(from);
#pragma unroll
            for (int i = 0; i < V; i++) body[i].add(a[i], b[i], starts, length);
        }
#pragma unroll
        for (int i = 0; i < V; i++) {
            ColumnGroup<COLUMNS, V, F> group{slots, i};
            body[i].finish(group);
        }
        if constexpr (Body::WRITES) {
            if constexpr (PER > 0) {
                if (depth < length) write();
            } else {
                for (int from = depth; from < length; from += DEEP * HOLD) {
                    gather(from);
                    write();
                }
            }
        }
        if (active && depth == 0)
#pragma unroll
            for (int i = 0; i < V; i++) body[i].end(args, number + i);
        __syncthreads();
    }
}
