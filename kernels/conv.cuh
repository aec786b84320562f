// What the kernels of convolution share: their arguments, and how the windows of an image are the rows of a matrix.
//
// All three passes are products of matrices (kernels/matmul.cuh says what of), one for each group of channels; images
// lie with their channels adjacent, weights as (*kernel, inputs, outputs). No such matrix is ever made: A's elements
// are found in the image as they are needed.
//
//                    C                             A                                        B
//     FORWARD        y (pixels, outputs)           windows of x (pixels, taps x inputs)     w (taps x inputs, outputs)
//     INPUT_GRAD     dx (pixels, inputs)           windows of dy (pixels, taps x outputs)   w (taps x outputs, inputs)
//     WEIGHT_GRAD    dw (taps x inputs, outputs)   windows of x (taps x inputs, pixels)     dy (pixels, outputs)
//
// A tap is an element of the kernel. Along each of three spatial axes (the first ones have length 1 where there are
// fewer), the tap j of row u of a window matrix reads the image at u row_step + origin + j tap_step, or is zero where
// that is outside. For FORWARD and WEIGHT_GRAD, row_step is the stride, origin what padding makes of it, tap_step the
// dilation. For INPUT_GRAD with stride 1, row_step is 1, and taps go backwards.
//
// With a stride s, x's pixel q is reached by the taps for which q + padding - tap dilation is a multiple of s. So
// pixels fall into classes by their remainders modulo s, and in each of them windows have only some of the taps, at
// even distances: each class is such a product by itself, and no multiplication is wasted on taps that do not reach.
#pragma once
#include "matmul.cuh"

enum ConvPass { FORWARD, INPUT_GRAD, WEIGHT_GRAD };

constexpr int MOST_CLASSES = 8;

// The rows of C that one launch computes of one class.
struct ConvClass {
    long long weight;  // where its first tap is in the weight
    int rows[3];       // how many there are of each image along each axis
    int origin[3];     // where the first tap of the first one is in the image
    int taps[3];       // how many taps there are
    int target[3];     // which pixel of C the first row is
};

// gpunet/ops/conv_kernels.py packs it. Strides are counted in elements.
struct ConvArgs {
    MatmulArgs matmul;        // A is the image, the batch the groups; m counts pixels of all classes
    long long image;          // from one image to the next
    long long weight_step[3]; // from one tap of a class to the next in the weight
    int pixel[3];             // from one pixel of an image to the next along each axis
    int size[3];              // pixels of an image
    int row_step[3], tap_step[3];
    int channels;             // of a group: K is taps x channels, but M is for WEIGHT_GRAD
    int images;
    int target_step[3];       // from one row to the next, in pixels of C
    int target_size[3];       // pixels of C
    int advance[4];           // WEIGHT_GRAD: as many rows as a block's threads load at a time, in images and rows
    int classes;
    int lanes;                // conv_direct_weight_grad: how many threads of a block have channels side by side
    int box[3];               // conv_wgmma: images, rows and columns of a tile
    ConvClass each[MOST_CLASSES];
};

// Where the window of a row begins: the image's element, and the pixel, of its first tap.
struct WindowRow {
    int offset;
    int pixel[3];
};

// How many rows of C a class has.
DEVICE int rows_of(const ConvArgs& args, const ConvClass& part) {
    return args.images * part.rows[0] * part.rows[1] * part.rows[2];
}

// Row `row` of a class in images and rows along each axis.
struct RowIndex {
    int image, at[3];

    DEVICE RowIndex(const ConvClass& part, int row) {
        const int first = row / part.rows[2], second = first / part.rows[1];
        at[2] = row - first * part.rows[2];
        at[1] = first - second * part.rows[1];
        image = second / part.rows[0];
        at[0] = second - image * part.rows[0];
    }
};

// What a block's threads need to know of the rows from `first` on: where their windows begin, counted from the image
// that the first of them is in, and which rows of C they are. Those beyond the last read nothing and are no rows of C.
template <int ROWS, int THREADS>
struct RowTable {
    WindowRow windows[ROWS];
    int targets[ROWS];

    DEVICE void fill(const ConvArgs& args, const ConvClass& part, int first) {
        const int count = rows_of(args, part), first_image = RowIndex(part, first).image;
        for (int i = threadIdx.x; i < ROWS; i += THREADS) {
            WindowRow window = {0, {-0x40000000, 0, 0}};
            int target = 0x7fffffff;
            if (first + i < count) {
                const RowIndex index(part, first + i);
                target = index.image;
                window.offset = static_cast<int>((index.image - first_image) * args.image);
#pragma unroll
                for (int axis = 0; axis < 3; axis++) {
                    window.pixel[axis] = index.at[axis] * args.row_step[axis] + part.origin[axis];
                    window.offset += window.pixel[axis] * args.pixel[axis];
                    target *= args.target_size[axis];
                    target += index.at[axis] * args.target_step[axis] + part.target[axis];
                }
            }
            windows[i] = window;
            targets[i] = target;
        }
    }
};

// A position along K of a window matrix: a channel of a tap.
struct Tap {
    int channel, at[3];

    DEVICE Tap(const ConvArgs& args, const ConvClass& part, int k) {
        int tap = k / args.channels;
        channel = k - tap * args.channels;
        const int next = tap / part.taps[2];
        at[2] = tap - next * part.taps[2];
        at[0] = next / part.taps[1];
        at[1] = next - at[0] * part.taps[1];
    }

    // Beyond the last tap it is one that does not exist.
    DEVICE void advance(const ConvArgs& args, const ConvClass& part, int by) {
        channel += by;
        while (channel >= args.channels) {
            channel -= args.channels;
            if (++at[2] < part.taps[2]) continue;
            at[2] = 0;
            if (++at[1] < part.taps[1]) continue;
            at[1] = 0;
            at[0]++;
        }
    }
};

// Where a tap is, seen from the first one of its window.
struct Shift {
    int offset, pixel[3];
};

DEVICE Shift shift_of(const ConvArgs& args, const Tap& tap) {
    Shift shift = {tap.channel, {}};
#pragma unroll
    for (int axis = 0; axis < 3; axis++) {
        shift.pixel[axis] = tap.at[axis] * args.tap_step[axis];
        shift.offset += shift.pixel[axis] * args.pixel[axis];
    }
    return shift;
}

DEVICE bool is_inside(const ConvArgs& args, const int (&pixel)[3]) {
    return static_cast<unsigned>(pixel[0]) < static_cast<unsigned>(args.size[0]) &&
           static_cast<unsigned>(pixel[1]) < static_cast<unsigned>(args.size[1]) &&
           static_cast<unsigned>(pixel[2]) < static_cast<unsigned>(args.size[2]);
}

DEVICE bool is_inside(const ConvArgs& args, const WindowRow& row, const Shift& shift) {
    const int pixel[3] = {row.pixel[0] + shift.pixel[0], row.pixel[1] + shift.pixel[1], row.pixel[2] + shift.pixel[2]};
    return is_inside(args, pixel);
}

// The pixels that one tap of successive windows reads: a column of WEIGHT_GRAD's A, which is a window matrix turned.
struct TapPixels {
    int image, at[3];  // the next window
    int first[3];      // where in the image the tap is for the window (0, 0, 0)
    int channel;

    // m: the tap and channel; k: the first window.
    DEVICE TapPixels(const ConvArgs& args, const ConvClass& part, int m, int k) {
        const Tap tap(args, part, m);
        const RowIndex index(part, k);
        image = index.image;
        channel = tap.channel;
#pragma unroll
        for (int axis = 0; axis < 3; axis++) {
            at[axis] = index.at[axis];
            first[axis] = part.origin[axis] + tap.at[axis] * args.tap_step[axis];
        }
    }

    // The pixel that the tap reads, and its element, counted from the image's first.
    DEVICE WindowRow window(const ConvArgs& args) const {
        WindowRow window = {channel, {}};
#pragma unroll
        for (int axis = 0; axis < 3; axis++) {
            window.pixel[axis] = first[axis] + at[axis] * args.row_step[axis];
            window.offset += window.pixel[axis] * args.pixel[axis];
        }
        return window;
    }

    // The element that the tap reads; negative if it is outside of the image.
    DEVICE long long offset(const ConvArgs& args) const {
        const WindowRow read = window(args);
        return is_inside(args, read.pixel) ? image * args.image + read.offset : -1;
    }

    DEVICE void advance(const ConvArgs& args, const ConvClass& part) {
        image += args.advance[0];
#pragma unroll
        for (int axis = 0; axis < 3; axis++) at[axis] += args.advance[1 + axis];
#pragma unroll
        for (int axis = 2; axis >= 0; axis--) {
            const bool carry = at[axis] >= part.rows[axis];
            at[axis] -= carry ? part.rows[axis] : 0;
            (axis ? at[axis - 1] : image) += carry;
        }
    }
};

// How long the sum of a class is.
DEVICE int length_of(const ConvArgs& args, const ConvClass& part) {
    return part.taps[0] * part.taps[1] * part.taps[2] * args.channels;
}
