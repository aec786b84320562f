// Products of a matrix and a vector: C (M, 1) = A (M, K) x, with x in B's place. A row times a matrix is the same with the
// operands and their strides exchanged, which the launching side does.
//
// Each element of A is used once, so all that counts is to read A at the memory's speed: neighbouring threads read
// neighbouring addresses, VECTOR elements (16 bytes) each, and several such loads are under way at a time.
//
//   K_MAJOR               A warp for each row: its lanes stride along K and add their sums up by shuffles.
//   MN_MAJOR, STRIDED     A lane for VECTOR adjacent rows: the block's 8 warps take the columns in turn, and their sums
//                         are added up through shared memory.
//
// Both orders are fixed. With VECTOR > 1, A's address and its strides but that of adjacent elements are multiples of 16
// bytes; so is split_k along K.
#include "matmul.cuh"

constexpr int WARPS = 8;

// x[first], x[first + step], ... of VECTOR elements; zeros from `count` on.
template <class T, int VECTOR>
DEVICE void gather(typename Number<T>::Compute (&values)[VECTOR], const typename Number<T>::Storage* x, long long step,
                   int count) {
#pragma unroll
    for (int i = 0; i < VECTOR; i++) values[i] = i < count ? Number<T>::load(x[i * step]) : 0;
}

// The same where they are adjacent and, if all are there, aligned.
template <class T, int VECTOR>
DEVICE void fetch(typename Number<T>::Compute (&values)[VECTOR], const typename Number<T>::Storage* x, int count) {
    if (count >= VECTOR) {
        const auto v = *reinterpret_cast<const Vector<typename Number<T>::Storage, VECTOR>*>(x);
#pragma unroll
        for (int i = 0; i < VECTOR; i++) values[i] = Number<T>::load(v.at[i]);
    } else {
        gather<T>(values, x, 1, count);
    }
}

template <class T, Layout LAYOUT, int VECTOR>
__global__ void __launch_bounds__(WARPS * 32) matmul_vector(const __grid_constant__ MatmulArgs args) {
    using Storage = typename Number<T>::Storage;
    using F = typename Number<T>::Compute;
    static_assert(LAYOUT != STRIDED || VECTOR == 1, "vectors need adjacent elements");
    const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
    const long long begin = args.splits > 1 ? static_cast<long long>(blockIdx.z) * args.split_k : 0;
    const int end = args.splits > 1 ? static_cast<int>(min(begin + args.split_k, static_cast<long long>(args.k))) : args.k;

    for (int z = blockIdx.y; z < args.batch; z += gridDim.y) {
        const Storage* a = static_cast<const Storage*>(args.a) + batch_offset(args, args.a_batch, z);
        const Storage* x = static_cast<const Storage*>(args.b) + batch_offset(args, args.b_batch, z);
        const Epilogue<T> epilogue(args, z, blockIdx.z);

        if constexpr (LAYOUT == K_MAJOR) {
            const int row = blockIdx.x * WARPS + warp;
            if (row >= args.m) continue;  // the whole warp: nobody waits for it
            a += row * args.a_row;
            F sums[VECTOR] = {};
#pragma unroll 4
            for (int k = static_cast<int>(begin) + lane * VECTOR; k < end; k += 32 * VECTOR) {
                F left[VECTOR], right[VECTOR];
                fetch<T>(left, a + k, end - k);
                gather<T>(right, x + k * args.b_row, args.b_row, end - k);
#pragma unroll
                for (int i = 0; i < VECTOR; i++) sums[i] += left[i] * right[i];
            }
            F sum[1] = {0};
#pragma unroll
            for (int i = 0; i < VECTOR; i++) sum[0] += sums[i];
#pragma unroll
            for (int distance = 16; distance > 0; distance /= 2) sum[0] += __shfl_xor_sync(~0u, sum[0], distance);
            if (lane == 0) epilogue.store(row, 0, sum);
        } else {
            constexpr int ROWS = 32 * VECTOR;
            __shared__ F parts[WARPS][ROWS];
            const int first = blockIdx.x * ROWS, row = first + lane * VECTOR;
            a += row * args.a_row;
            F sums[VECTOR] = {};
#pragma unroll 4
            for (int k = static_cast<int>(begin) + warp; k < end; k += WARPS) {
                F column[VECTOR];
                if (LAYOUT == MN_MAJOR)
                    fetch<T>(column, a + k * args.a_col, args.m - row);
                else
                    gather<T>(column, a + k * args.a_col, 1, args.m - row);
                const F right = Number<T>::load(x[k * args.b_row]);
#pragma unroll
                for (int i = 0; i < VECTOR; i++) sums[i] += column[i] * right;
            }
            __syncthreads();  // the last round's sums have been read
#pragma unroll
            for (int i = 0; i < VECTOR; i++) parts[warp][lane * VECTOR + i] = sums[i];
            __syncthreads();
            for (int i = threadIdx.x; i < ROWS; i += WARPS * 32) {
                F sum[1] = {0};
#pragma unroll
                for (int w = 0; w < WARPS; w++) sum[0] += parts[w][i];
                epilogue.store(first + i, 0, sum);
            }
        }
    }
}
