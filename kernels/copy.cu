// Copies between layouts and types, and constants.
//
// What two arrays of one shape lie alike in is merged into one axis by the launching side (gpunet/ops/launch.py), and
// the axes are ordered by the target's strides.
//
//   copy           A thread copies VECTOR elements, adjacent in both arrays, or one.
//   copy_turned    Where elements are adjacent along one axis of the target and another of the source: squares of
//                  32 x 32 through shared memory, so that reads and writes both are of adjacent elements.
#include "array.cuh"

struct CopyArgs {
    const void* from;
    void* to;
    Axes axes;
    long long from_strides[MOST_AXES], to_strides[MOST_AXES];
    long long count;  // of vectors of VECTOR elements; for copy_turned, of squares
    int turned;       // the axis along which the source's elements are adjacent; the target's are along the last
};

template <class To, class From, int VECTOR>
__global__ void __launch_bounds__(256) copy(const __grid_constant__ CopyArgs args) {
    for (long long i = blockIdx.x * 256ll + threadIdx.x; i < args.count; i += gridDim.x * 256ll) {
        const Stored<From>* from = static_cast<const Stored<From>*>(args.from);
        Stored<To>* to = static_cast<Stored<To>*>(args.to);
        from += args.axes.offset(i * VECTOR, args.from_strides);
        to += args.axes.offset(i * VECTOR, args.to_strides);
        Vector<Stored<From>, VECTOR> x = *reinterpret_cast<const Vector<Stored<From>, VECTOR>*>(from);
        Vector<Stored<To>, VECTOR> y;
#pragma unroll
        for (int j = 0; j < VECTOR; j++) y.at[j] = convert<To, From>(x.at[j]);
        *reinterpret_cast<Vector<Stored<To>, VECTOR>*>(to) = y;
    }
}

// 32 x 8 threads; each moves 4 elements of a square.
template <class To, class From>
__global__ void __launch_bounds__(256) copy_turned(const __grid_constant__ CopyArgs args) {
    __shared__ Stored<From> square[32][33];
    const int last = args.axes.count - 1, turned = args.turned;
    const int width = args.axes.shape[last], height = args.axes.shape[turned];
    const int squares_wide = (width + 31) / 32, squares_high = (height + 31) / 32;
    const int x = threadIdx.x % 32, y = threadIdx.x / 32;
    for (long long i = blockIdx.x; i < args.count; i += gridDim.x) {
        const int column = static_cast<int>(i % squares_wide) * 32;
        const int row = static_cast<int>(i / squares_wide % squares_high) * 32;
        long long rest = i / squares_wide / squares_high, from_offset = 0, to_offset = 0;
        for (int axis = last - 1; axis >= 0; axis--) {
            if (axis == turned) continue;
            const long long next = rest / args.axes.shape[axis], at = rest - next * args.axes.shape[axis];
            from_offset += at * args.from_strides[axis];
            to_offset += at * args.to_strides[axis];
            rest = next;
        }
        const Stored<From>* from = static_cast<const Stored<From>*>(args.from) + from_offset;
        Stored<To>* to = static_cast<Stored<To>*>(args.to) + to_offset;
        for (int j = y; j < 32; j += 8)  // along the source's adjacent elements
            if (row + x < height && column + j < width)
                square[j][x] = from[(row + x) * args.from_strides[turned] + (column + j) * args.from_strides[last]];
        __syncthreads();
        for (int j = y; j < 32; j += 8)
            if (row + j < height && column + x < width)
                to[(row + j) * args.to_strides[turned] + (column + x) * args.to_strides[last]] =
                    convert<To, From>(square[x][j]);
        __syncthreads();
    }
}

struct FillArgs {
    void* to;
    long long count;  // of elements
    unsigned char value[8];
};

// Unsigned is an unsigned type of the elements' size, whose bytes `value` starts with.
template <class Unsigned>
__global__ void __launch_bounds__(256) fill(const __grid_constant__ FillArgs args) {
    constexpr int N = 16 / sizeof(Unsigned);
    Unsigned value = 0;
#pragma unroll
    for (int i = sizeof(Unsigned) - 1; i >= 0; i--)
        value = static_cast<Unsigned>((static_cast<unsigned long long>(value) << 8) | args.value[i]);
    Unsigned* to = static_cast<Unsigned*>(args.to);
    const bool whole = reinterpret_cast<unsigned long long>(to) % 16 == 0;
    Unsigned values[N];
#pragma unroll
    for (int i = 0; i < N; i++) values[i] = value;
    for (long long i = (blockIdx.x * 256ll + threadIdx.x) * N; i < args.count; i += gridDim.x * 256ll * N) {
        const int count = static_cast<int>(min(args.count - i, static_cast<long long>(N)));
        store_vector<Unsigned, N>(to + i, whole && count == N, count, values);
    }
}
