// The second pass of a product whose sum over K was split: adds the parts up, always in the same order, and finishes
// them. So a split product too gives the same bits every time, which atomic additions would not.
//
// A thread takes groups of adjacent columns, 16 bytes of the compute type, and strides over all groups of all products.
#include "matmul.cuh"

template <class T>
__global__ void __launch_bounds__(256, 2) matmul_reduce(const __grid_constant__ MatmulArgs args) {
    using F = typename Number<T>::Compute;
    constexpr int N = 16 / sizeof(F), UNDER_WAY = 8;  // loads of a thread at a time
    const int groups = (args.n - 1) / N + 1;  // in a row
    const long long part = static_cast<long long>(args.batch) * args.m * args.n;
    const long long count = static_cast<long long>(args.batch) * args.m * groups;
    const bool whole = args.n % N == 0;  // then every group is complete, and aligned

    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < count; i += gridDim.x * 256ll) {
        const long long line = i / groups;
        const int col = static_cast<int>(i - line * groups) * N, z = static_cast<int>(line / args.m);
        const int row = static_cast<int>(line - static_cast<long long>(z) * args.m);
        const F* from = static_cast<const F*>(args.workspace) + line * args.n + col;
        F sums[N] = {};
        for (int split = 0; split < args.splits; split += UNDER_WAY, from += UNDER_WAY * part) {
            Vector<F, N> parts[UNDER_WAY] = {};
#pragma unroll
            for (int u = 0; u < UNDER_WAY; u++) {
                if (split + u >= args.splits) break;
                if (whole) {
                    parts[u] = *reinterpret_cast<const Vector<F, N>*>(from + u * part);
                } else {
#pragma unroll
                    for (int j = 0; j < N; j++)
                        if (col + j < args.n) parts[u].at[j] = from[u * part + j];
                }
            }
#pragma unroll
            for (int u = 0; u < UNDER_WAY; u++)
#pragma unroll
                for (int j = 0; j < N; j++) sums[j] += parts[u].at[j];
        }
        Epilogue<T> epilogue(args, z, 0);
        epilogue.partial = nullptr;  // these sums are complete
        epilogue.store(row, col, sums);
    }
}
