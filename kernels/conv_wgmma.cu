// Convolutions on Hopper's tensor cores (compute capability 9.0): wgmma on what the copy engine (TMA) brings.
//
// matmul_wgmma's plan (kernels/matmul_wgmma.cu): one thread has the copy engine fill a ring, warpgroups multiply. Here
// a tile of C is a box of pixels, `box[0]` images by `box[1]` rows by `box[2]` columns, BM of them or a few less. The
// windows of such a box, seen by one tap, are the same box of the image, shifted: so one copy brings a step's whole
// part of A, 128 bytes of channels of each pixel, with zeros for what is outside of the image, and nothing is computed
// per element. That takes a stride of 1 (INPUT_GRAD: that of the convolution it belongs to), one group, at most two
// spatial axes, and channels that are multiples of 16 bytes. What a tap's last step lacks of 128 bytes of channels is
// zeros in both operands.
//
// B is the weight: the copy engine sees it as (taps, inputs, outputs). FORWARD takes it MN_MAJOR, but TF32 has no such
// wgmma: its weight has been turned to (taps, outputs, inputs).
#include "conv.cuh"
#include "matmul_wgmma.cuh"

// A tile of C.
struct ConvWork {
    int corner[3];  // its first pixel: image, row, column
    int col, z, split;
    int first, steps;  // which step along K is its first, and how many there are
};

template <class T, int BM, int BN, Layout B_LAYOUT>
struct ConvList {
    static constexpr int BK = 128 / sizeof(T), A_BYTES = BM * 128;
    static_assert(B_LAYOUT != STRIDED, "the copy engine wants adjacent elements");

    const ConvArgs& args;
    const ConvClass& part;
    const TensorMap &image_map, &weight_map;
    int tiles[3], tiles_n;
    int tap_steps, all_steps;  // of a tap, and of all
    unsigned count;

    DEVICE ConvList(const ConvArgs& args, const TensorMap& image_map, const TensorMap& weight_map)
        : args(args), part(args.each[0]), image_map(image_map), weight_map(weight_map) {
        const int lengths[3] = {args.images, part.rows[1], part.rows[2]};
        count = tiles_n = (args.matmul.n + BN - 1) / BN;
#pragma unroll
        for (int axis = 0; axis < 3; axis++) {
            tiles[axis] = (lengths[axis] + args.box[axis] - 1) / args.box[axis];
            count *= tiles[axis];
        }
        count *= args.matmul.splits;
        tap_steps = (args.channels + BK - 1) / BK;
        all_steps = part.taps[1] * part.taps[2] * tap_steps;
    }

    DEVICE ConvWork at(unsigned index) const {
        ConvWork work;
        const int boxes = tiles[0] * tiles[1] * tiles[2], split = index / (boxes * tiles_n);
        const Tile tile = tile_at(index - split * boxes * tiles_n, boxes, tiles_n);
        const int next = tile.row / tiles[2];
        work.corner[2] = (tile.row - next * tiles[2]) * args.box[2];
        work.corner[0] = next / tiles[1];
        work.corner[1] = (next - work.corner[0] * tiles[1]) * args.box[1];
        work.corner[0] *= args.box[0];
        work.col = tile.col * BN;
        work.z = 0;
        work.split = split;
        // Parts of a split sum are whole steps: split_k counts these.
        work.first = args.matmul.splits > 1 ? split * args.matmul.split_k : 0;
        work.steps = args.matmul.splits > 1 ? max(min(all_steps - work.first, args.matmul.split_k), 0) : all_steps;
        return work;
    }

    DEVICE void prefetch_maps() const {
        prefetch(image_map);
        prefetch(weight_map);
    }

    DEVICE int bytes() const { return (args.box[0] * args.box[1] * args.box[2] + BN) * 128; }

    DEVICE void load(unsigned char* slot, Barrier* landed, const ConvWork& work, int step) const {
        const int index = work.first + step, tap = index / tap_steps, channel = (index - tap * tap_steps) * BK;
        const int row = tap / part.taps[2], column = tap - row * part.taps[2];
        tma_load(slot, image_map, landed, channel, work.corner[2] + part.origin[2] + column * args.tap_step[2],
                 work.corner[1] + part.origin[1] + row * args.tap_step[1], work.corner[0]);
        if (B_LAYOUT == K_MAJOR) {
            tma_load(slot + A_BYTES, weight_map, landed, channel, work.col, tap);
        } else {
#pragma unroll
            for (int i = 0; i < BN; i += 64)
                tma_load(slot + A_BYTES + i * 128, weight_map, landed, work.col + i, channel, tap);
        }
    }

    // The pixel that row r of the tile is.
    DEVICE int row(const ConvWork& work, int r) const {
        const int next = r / args.box[2], image = next / args.box[1];
        const int at[3] = {work.corner[0] + image, work.corner[1] + next - image * args.box[1],
                           work.corner[2] + r - next * args.box[2]};
        if (image >= args.box[0] || at[0] >= args.images || at[1] >= part.rows[1] || at[2] >= part.rows[2])
            return 0x7fffffff;
        return (at[0] * part.rows[1] + at[1]) * part.rows[2] + at[2];
    }
};

template <class T, int BM, int BN, int STAGES, Layout B_LAYOUT>
__global__ void __launch_bounds__(128 + 2 * BM, BM == 64 ? 2 : 1)
    conv_wgmma(const __grid_constant__ ConvArgs args, const __grid_constant__ TensorMap image_map,
               const __grid_constant__ TensorMap weight_map) {
    const ConvList<T, BM, BN, B_LAYOUT> list(args, image_map, weight_map);
    multiply_persistently<T, BM, BN, STAGES, false, B_LAYOUT == MN_MAJOR>(args.matmul, list);
}

// --- WEIGHT_GRAD ------------------------------------------------------------------------------------------------------
//
// K is pixels: a step is a box of up to 64 of them, of which both operands are MN_MAJOR, 64 channels of each pixel to a
// line. A tile's BM rows of C are BM / 64 blocks, each of 64 channels of one tap, and each has a copy of its own. A box
// of fewer than 64 pixels leaves the rest of the slot as it was at first: zeros.

struct WeightGradWork {
    int block, col, z, split;  // its first block of rows, its first column
    int first, steps;
};

template <class T, int BM, int BN>
struct WeightGradList {
    static constexpr int BK = 64, A_BYTES = BM * 128, BLOCK = 64 * 128;

    const ConvArgs& args;
    const ConvClass& part;
    const TensorMap &image_map, &gradient_map;
    int boxes_high, boxes_wide, all_steps;
    int tap_blocks, tiles_m, tiles_n;  // blocks of a tap, and tiles
    unsigned count;

    DEVICE WeightGradList(const ConvArgs& args, const TensorMap& image_map, const TensorMap& gradient_map)
        : args(args), part(args.each[0]), image_map(image_map), gradient_map(gradient_map) {
        boxes_high = (part.rows[1] + args.box[1] - 1) / args.box[1];
        boxes_wide = (part.rows[2] + args.box[2] - 1) / args.box[2];
        all_steps = (args.images + args.box[0] - 1) / args.box[0] * boxes_high * boxes_wide;
        tap_blocks = (args.channels + 63) / 64;
        tiles_m = (part.taps[1] * part.taps[2] * tap_blocks + BM / 64 - 1) / (BM / 64);
        tiles_n = (args.matmul.n + BN - 1) / BN;
        count = static_cast<unsigned>(tiles_m) * tiles_n * args.matmul.splits;
    }

    DEVICE WeightGradWork at(unsigned index) const {
        WeightGradWork work;
        const int tiles = tiles_m * tiles_n, split = index / tiles;
        const Tile tile = tile_at(index - split * tiles, tiles_m, tiles_n);
        work.block = tile.row * (BM / 64);
        work.col = tile.col * BN;
        work.z = 0;
        work.split = split;
        work.first = args.matmul.splits > 1 ? split * args.matmul.split_k : 0;
        work.steps = args.matmul.splits > 1 ? max(min(all_steps - work.first, args.matmul.split_k), 0) : all_steps;
        return work;
    }

    DEVICE void prefetch_maps() const {
        prefetch(image_map);
        prefetch(gradient_map);
    }

    DEVICE int bytes() const { return (BM + BN) / 64 * args.box[0] * args.box[1] * args.box[2] * 128; }

    DEVICE void load(unsigned char* slot, Barrier* landed, const WeightGradWork& work, int step) const {
        const int next = (work.first + step) / boxes_wide, image = next / boxes_high;
        const int column = (work.first + step - next * boxes_wide) * args.box[2];
        const int row = (next - image * boxes_high) * args.box[1], first_image = image * args.box[0];
#pragma unroll
        for (int i = 0; i < BM / 64; i++) {  // beyond the last tap, there are only zeros
            const int tap = (work.block + i) / tap_blocks, at_row = tap / part.taps[2];
            const int channel = at_row < part.taps[1] ? (work.block + i - tap * tap_blocks) * 64 : args.channels;
            tma_load(slot + i * BLOCK, image_map, landed, channel,
                     column + part.origin[2] + (tap - at_row * part.taps[2]) * args.tap_step[2],
                     row + part.origin[1] + at_row * args.tap_step[1], first_image);
        }
#pragma unroll
        for (int i = 0; i < BN / 64; i++)
            tma_load(slot + A_BYTES + i * BLOCK, gradient_map, landed, work.col + i * 64, column, row, first_image);
    }

    // The tap and channel that row r of the tile is.
    DEVICE int row(const WeightGradWork& work, int r) const {
        const int block = work.block + r / 64, tap = block / tap_blocks;
        const int channel = (block - tap * tap_blocks) * 64 + r % 64;
        return channel < args.channels ? tap * args.channels + channel : 0x7fffffff;  // also beyond the last tap
    }
};

template <class T, int BM, int BN, int STAGES>
__global__ void __launch_bounds__(128 + 2 * BM, BM == 64 ? 2 : 1)
    conv_wgmma_weight_grad(const __grid_constant__ ConvArgs args, const __grid_constant__ TensorMap image_map,
                           const __grid_constant__ TensorMap gradient_map) {
    if (args.box[0] * args.box[1] * args.box[2] < 64) {
        for (int i = threadIdx.x * 16; i < STAGES * (BM + BN) * 128; i += (128 + 2 * BM) * 16)
            *reinterpret_cast<Vector<unsigned, 4>*>(gn_shared + i) = {};
        fence_stores();
        __syncthreads();
    }
    const WeightGradList<T, BM, BN> list(args, image_map, gradient_map);
    multiply_persistently<T, BM, BN, STAGES, true, true>(args.matmul, list);
}
