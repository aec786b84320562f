// Convolutions whose sums are short, by multiply-adds without tiles: depthwise ones, where each channel is a group, and
// those of few input channels. The limit is memory, or should be.
//
// conv_direct (FORWARD and INPUT_GRAD, see kernels/conv.cuh). A thread computes VECTOR adjacent channels of PIXELS
// pixels side by side, so that what it loads of the weight serves all of them. Threads next to each other have the next
// channels, then the next pixels: a warp reads and writes whole lines. A pixel is read from the first-level cache once
// for each tap that reaches it, but from memory once: 1.0 times the least that can be moved.
//
// conv_direct_weight_grad. A thread has VECTOR adjacent outputs and TAPS taps of their weights, and goes along a part
// of the pixels. The block adds up what its threads found, those with the same channels in the order of their pixels,
// and writes it as its part of a split sum, which matmul_reduce adds up: the same bits every time.
//
// Which channels of the image a thread needs:
//
//     ALIKE     its own: groups of one channel on both sides
//     SHARED    all of its outputs are of one group, and the same ones
//     EACH      VECTOR is 1; any group
#include "array.cuh"
#include "conv.cuh"

enum Sharing { ALIKE, SHARED, EACH };

// `matmul` is one product here: n counts the channels of all groups, and batch_inner is how many groups there are.
template <class T, ConvPass PASS, int VECTOR, Sharing SHARING>
__global__ void __launch_bounds__(256, sizeof(T) == 8 ? 1 : 2) conv_direct(const __grid_constant__ ConvArgs args) {
    using Storage = typename Number<T>::Storage;
    using F = typename Number<T>::Compute;
    static_assert(SHARING != EACH || VECTOR == 1, "each channel has its own sources");
    static_assert(SHARING != SHARED || PASS == FORWARD, "only outputs lie adjacent in the weight");
    constexpr int PIXELS = 4;
    constexpr int X = SHARING == ALIKE ? VECTOR : 1;  // elements of the image for a tap
    const ConvClass& part = args.each[blockIdx.y];
    const int vectors = args.matmul.n / VECTOR, of_group = args.matmul.n / args.matmul.batch_inner;
    const int blocks = (part.rows[2] + PIXELS - 1) / PIXELS;  // of pixels along a row
    const unsigned count = static_cast<unsigned>(args.images) * part.rows[0] * part.rows[1] * blocks * vectors;
    const Storage* image = static_cast<const Storage*>(args.matmul.a);
    const Storage* weight = static_cast<const Storage*>(args.matmul.b) + part.weight;
    const Epilogue<T> epilogue(args.matmul, 0, 0);

    for (unsigned index = blockIdx.x * 256 + threadIdx.x; index < count; index += gridDim.x * 256) {
        unsigned rest = index / vectors;
        const int channel = (index - rest * vectors) * VECTOR;
        const int row2 = rest % blocks * PIXELS;
        rest /= blocks;
        const int row1 = rest % part.rows[1];
        rest /= part.rows[1];
        const int row0 = rest % part.rows[0], n = rest / part.rows[0];
        const int group = SHARING == ALIKE ? channel : channel / of_group;
        const Storage* from = image + n * args.image + group * args.channels;
        const Storage* weights = weight;
        if (PASS == FORWARD)
            weights += channel;
        else
            weights += (channel - group * of_group) * args.matmul.b_col + group * args.channels;

        F sums[PIXELS][VECTOR] = {};
        for (int tap0 = 0; tap0 < part.taps[0]; tap0++) {
            const int pixel0 = row0 * args.row_step[0] + part.origin[0] + tap0 * args.tap_step[0];
            if (static_cast<unsigned>(pixel0) >= static_cast<unsigned>(args.size[0])) continue;
            for (int tap1 = 0; tap1 < part.taps[1]; tap1++) {
                const int pixel1 = row1 * args.row_step[1] + part.origin[1] + tap1 * args.tap_step[1];
                if (static_cast<unsigned>(pixel1) >= static_cast<unsigned>(args.size[1])) continue;
                for (int tap2 = 0; tap2 < part.taps[2]; tap2++) {
                    const int pixel2 = row2 * args.row_step[2] + part.origin[2] + tap2 * args.tap_step[2];
                    const Storage* tap = weights + tap0 * args.weight_step[0] + tap1 * args.weight_step[1] +
                                         tap2 * args.weight_step[2];
                    const Storage* source = from + pixel0 * static_cast<long long>(args.pixel[0]) +
                                            pixel1 * static_cast<long long>(args.pixel[1]);
                    for (int e = 0; e < (SHARING == ALIKE ? 1 : args.channels); e++) {
                        F w[VECTOR];
                        load_vector<T, VECTOR>(tap + e * args.matmul.b_row, true, VECTOR, w);
                        Vector<Storage, X> x[PIXELS] = {};  // all on their way at once
#pragma unroll
                        for (int p = 0; p < PIXELS; p++) {
                            const int pixel = pixel2 + p * args.row_step[2];
                            if (static_cast<unsigned>(pixel) < static_cast<unsigned>(args.size[2]))
                                x[p] = *reinterpret_cast<const Vector<Storage, X>*>(source + pixel * args.pixel[2] + e);
                        }
#pragma unroll
                        for (int p = 0; p < PIXELS; p++)
#pragma unroll
                            for (int i = 0; i < VECTOR; i++) sums[p][i] += Number<T>::load(x[p].at[i % X]) * w[i];
                    }
                }
            }
        }
        int target = n;
        target = target * args.target_size[0] + row0 * args.target_step[0] + part.target[0];
        target = target * args.target_size[1] + row1 * args.target_step[1] + part.target[1];
        target = target * args.target_size[2] + row2 * args.target_step[2] + part.target[2];
#pragma unroll 1
        for (int p = 0; p < PIXELS && row2 + p < part.rows[2]; p++) {
            F first[VECTOR];  // the sums move up, so that the first are stored each time: registers have no index
#pragma unroll
            for (int i = 0; i < VECTOR; i++) first[i] = sums[0][i];
            epilogue.store(target + p * args.target_step[2], channel, first);
#pragma unroll
            for (int q = 0; q + 1 < PIXELS; q++)
#pragma unroll
                for (int i = 0; i < VECTOR; i++) sums[q][i] = sums[q + 1][i];
        }
    }
}

// blockIdx: x, the channels; y, the taps; z, the part of the pixels. Taps count the channels of a group, too.
// args.lanes threads have neighbouring channels, 256 / args.lanes have neighbouring pixels.
template <class T, int VECTOR, Sharing SHARING>
__global__ void __launch_bounds__(256, 1) conv_direct_weight_grad(const __grid_constant__ ConvArgs args) {
    using Storage = typename Number<T>::Storage;
    using F = typename Number<T>::Compute;
    constexpr int TAPS = 9;
    __shared__ Shift shifts[TAPS];
    __shared__ F found[256 * VECTOR];
    const ConvClass& part = args.each[0];
    const MatmulArgs& product = args.matmul;
    const int streams = 256 / args.lanes, width = args.lanes * VECTOR;
    const int lane = threadIdx.x % args.lanes, stream = threadIdx.x / args.lanes;
    const int output = blockIdx.x * width + lane * VECTOR;
    const int first_tap = blockIdx.y * TAPS, count = product.m;
    if (threadIdx.x < TAPS) {
        const int tap = min(first_tap + static_cast<int>(threadIdx.x), count - 1);
        shifts[threadIdx.x] = shift_of(args, Tap(args, part, tap));
    }
    __syncthreads();

    F sums[TAPS][VECTOR] = {};
    const long long first = static_cast<long long>(blockIdx.z) * product.split_k + stream;
    const long long last = min(first - stream + product.split_k, static_cast<long long>(product.k));
    if (output < product.n && first < last) {
        const int group = SHARING == ALIKE ? output : output / (product.n / product.batch_inner);
        const Storage* image = static_cast<const Storage*>(product.a) + group * args.channels;
        const Storage* gradient = static_cast<const Storage*>(product.b) + output;
        TapPixels pixels(args, part, 0, static_cast<int>(first));
        for (long long k = first; k < last; k += streams) {
            F g[VECTOR];
            load_vector<T, VECTOR>(gradient + k * product.b_row, true, VECTOR, g);
            const WindowRow window = pixels.window(args);
            const Storage* from = image + pixels.image * args.image;
#pragma unroll
            for (int t = 0; t < TAPS; t++) {
                const Shift shift = shifts[t];
                if (!is_inside(args, window, shift)) continue;
                F x[SHARING == ALIKE ? VECTOR : 1];
                load_vector<T, SHARING == ALIKE ? VECTOR : 1>(from + (window.offset + shift.offset), true, VECTOR, x);
#pragma unroll
                for (int i = 0; i < VECTOR; i++) sums[t][i] += x[SHARING == ALIKE ? i : 0] * g[i];
            }
            pixels.advance(args, part);
        }
    }
    const Epilogue<T> epilogue(product, 0, blockIdx.z);
#pragma unroll
    for (int t = 0; t < TAPS; t++) {
        if (first_tap + t >= count) break;
#pragma unroll
        for (int i = 0; i < VECTOR; i++) found[stream * width + lane * VECTOR + i] = sums[t][i];
        __syncthreads();
        for (int i = threadIdx.x; i < width; i += 256) {
            F total[1] = {0};
            for (int s = 0; s < streams; s++) total[0] += found[s * width + i];
            epilogue.store(first_tap + t, blockIdx.x * width + i, total);
        }
        __syncthreads();
    }
}
