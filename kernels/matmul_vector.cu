// Products of a matrix and a vector: C (M, 1) = A (M, K) x, with x in B's place. A row times a matrix is the same with
// the operands and their strides exchanged, which the launching side does.
//
// Each element of A is used once, so all that counts is to read A at the memory's speed: neighbouring threads read
// neighbouring addresses, VECTOR elements (16 bytes) each, and each thread has UNDER_WAY such loads under way.
//
//   K_MAJOR               A warp for each row: its lanes stride along K and add their sums up by shuffles.
//   MN_MAJOR, STRIDED     A lane for VECTOR adjacent rows: the block's 8 warps take the columns in turn, and their sums
//                         are added up through shared memory.
//
// Both orders are fixed. With VECTOR > 1, A's address and its strides but that of adjacent elements are multiples of 16
// bytes; so is split_k along K.
#include "matmul.cuh"

constexpr int WARPS = 8, UNDER_WAY = 4;

// VECTOR adjacent elements of which `count` exist, in one load if all do. The others are zeros.
template <class T, int VECTOR>
DEVICE Vector<T, VECTOR> fetch(const T* x, long long count) {
    Vector<T, VECTOR> v = {};
    if (count >= VECTOR) {
        v = *reinterpret_cast<const Vector<T, VECTOR>*>(x);
    } else {
#pragma unroll
        for (int i = 0; i < VECTOR; i++)
            if (i < count) v.at[i] = x[i];
    }
    return v;
}

// VECTOR elements, `step` apart.
template <class T, int VECTOR>
DEVICE Vector<T, VECTOR> gather(const T* x, long long step, long long count) {
    Vector<T, VECTOR> v = {};
#pragma unroll
    for (int i = 0; i < VECTOR; i++)
        if (i < count) v.at[i] = x[i * step];
    return v;
}

// One lane's part of a row times x, from k on in steps of the whole warp.
template <class T, int VECTOR>
DEVICE typename Number<T>::Compute row_times(const typename Number<T>::Storage* a,
                                             const typename Number<T>::Storage* x, long long x_step, long long k,
                                             long long end) {
    using Storage = typename Number<T>::Storage;
    using F = typename Number<T>::Compute;
    using Loaded = Vector<Storage, VECTOR>;
    constexpr int STEP = 32 * VECTOR;
    const bool x_fits = x_step == 1 && reinterpret_cast<unsigned long long>(x) % sizeof(Loaded) == 0;
    F sums[VECTOR] = {};
    const auto add = [&](const Loaded& left, const Loaded& right) {
#pragma unroll
        for (int i = 0; i < VECTOR; i++) sums[i] += Number<T>::load(left.at[i]) * Number<T>::load(right.at[i]);
    };

    for (; k + (UNDER_WAY - 1) * STEP + VECTOR <= end; k += UNDER_WAY * STEP) {
        Loaded left[UNDER_WAY], right[UNDER_WAY];
#pragma unroll
        for (int u = 0; u < UNDER_WAY; u++) left[u] = *reinterpret_cast<const Loaded*>(a + k + u * STEP);
        if (x_fits) {
#pragma unroll
            for (int u = 0; u < UNDER_WAY; u++) right[u] = *reinterpret_cast<const Loaded*>(x + k + u * STEP);
        } else {
#pragma unroll
            for (int u = 0; u < UNDER_WAY; u++)
                right[u] = gather<Storage, VECTOR>(x + (k + u * STEP) * x_step, x_step, VECTOR);
        }
#pragma unroll
        for (int u = 0; u < UNDER_WAY; u++) add(left[u], right[u]);
    }
    for (; k < end; k += STEP)
        add(fetch<Storage, VECTOR>(a + k, end - k), gather<Storage, VECTOR>(x + k * x_step, x_step, end - k));

    F sum = 0;
#pragma unroll
    for (int i = 0; i < VECTOR; i++) sum += sums[i];
    return sum;
}

// One lane's VECTOR rows, of which `rows` exist, times x: one column in WARPS, from k on.
template <class T, int VECTOR>
DEVICE void columns_times(typename Number<T>::Compute (&sums)[VECTOR], const typename Number<T>::Storage* a,
                          long long a_step, const typename Number<T>::Storage* x, long long x_step, long long rows,
                          long long k, long long end) {
    using Storage = typename Number<T>::Storage;
    using F = typename Number<T>::Compute;
    if (rows <= 0) return;
    for (; k < end; k += UNDER_WAY * WARPS) {
        Vector<Storage, VECTOR> column[UNDER_WAY];
        F right[UNDER_WAY];
#pragma unroll
        for (int u = 0; u < UNDER_WAY; u++) {
            const long long at = k + u * WARPS;
            column[u] = fetch<Storage, VECTOR>(a + (at < end ? at : k) * a_step, rows);
            right[u] = at < end ? F(Number<T>::load(x[at * x_step])) : F(0);
        }
#pragma unroll
        for (int u = 0; u < UNDER_WAY; u++) {
            if (k + u * WARPS >= end) break;  // not multiplied by zero, as the column in its place may be infinite
#pragma unroll
            for (int i = 0; i < VECTOR; i++) sums[i] += Number<T>::load(column[u].at[i]) * right[u];
        }
    }
}

template <class T, Layout LAYOUT, int VECTOR>
__global__ void __launch_bounds__(WARPS * 32, 2) matmul_vector(const __grid_constant__ MatmulArgs args) {
    using Storage = typename Number<T>::Storage;
    using F = typename Number<T>::Compute;
    static_assert(LAYOUT != STRIDED || VECTOR == 1, "vectors need adjacent elements");
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const long long begin = args.splits > 1 ? static_cast<long long>(blockIdx.z) * args.split_k : 0;
    const long long end = args.splits > 1 ? min(begin + args.split_k, static_cast<long long>(args.k)) : args.k;

    for (int z = blockIdx.y; z < args.batch; z += gridDim.y) {
        const Storage* a = static_cast<const Storage*>(args.a) + batch_offset(args, args.a_batch, z);
        const Storage* x = static_cast<const Storage*>(args.b) + batch_offset(args, args.b_batch, z);
        const Epilogue<T> epilogue(args, z, blockIdx.z);

        if constexpr (LAYOUT == K_MAJOR) {
            const long long row = static_cast<long long>(blockIdx.x) * WARPS + warp;
            if (row >= args.m) continue;  // the whole warp: nobody waits for it
            F sum[1] = {row_times<T, VECTOR>(a + row * args.a_row, x, args.b_row, begin + lane * VECTOR, end)};
#pragma unroll
            for (int distance = 16; distance > 0; distance /= 2) sum[0] += __shfl_xor_sync(~0u, sum[0], distance);
            if (lane == 0) epilogue.store(static_cast<int>(row), 0, sum);
        } else {
            constexpr int ROWS = 32 * VECTOR;
            __shared__ F parts[WARPS][ROWS];  // row i of the block is at (i % VECTOR, i / VECTOR): no bank conflicts
            const long long first = static_cast<long long>(blockIdx.x) * ROWS, row = first + lane * VECTOR;
            F sums[VECTOR] = {};
            columns_times<T, VECTOR>(sums, a + row * args.a_row, args.a_col, x, args.b_row, args.m - row, begin + warp,
                                     end);
            __syncthreads();  // the last round's sums have been read
#pragma unroll
            for (int i = 0; i < VECTOR; i++) parts[warp][i * 32 + lane] = sums[i];
            __syncthreads();
            for (int i = threadIdx.x; i < ROWS; i += WARPS * 32) {
                const long long sum_row = first + i % 32 * VECTOR + i / 32;
                if (sum_row >= args.m) continue;
                F sum[1] = {0};
#pragma unroll
                for (int w = 0; w < WARPS; w++) sum[0] += parts[w][i];
                epilogue.store(static_cast<int>(sum_row), 0, sum);
            }
        }
    }
}
