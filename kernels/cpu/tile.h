// Products whose sums stay in registers: a tile of rows by vectors of columns.
#pragma once
#include "array.h"

#include <utility>

namespace {

// How many rows a tile has, for so many vectors across: as many as there are registers for.
constexpr int rows_for(int vectors) {
    if (WIDTH == 16) return vectors == 4 ? 6 : vectors == 3 ? 8 : 12;
    return vectors == 4 ? 3 : vectors == 3 ? 4 : vectors == 2 ? 6 : 12;
}

// Tile<rows, vectors>::run, for up to rows_for(vectors) rows and up to four vectors.
template <template <int, int> class Tile, int V, int... P>
auto tile_for(long rows, std::integer_sequence<int, P...>) {
    static constexpr decltype(&Tile<1, V>::run) tiles[] = {Tile<P + 1, V>::run...};
    return tiles[rows - 1];
}

template <template <int, int> class Tile, int V> auto tile_for(long rows) {
    return tile_for<Tile, V>(rows, std::make_integer_sequence<int, rows_for(V)>());
}

template <template <int, int> class Tile> auto tile_for(int vectors, long rows) {
    switch (vectors) {
        case 1: return tile_for<Tile, 1>(rows);
        case 2: return tile_for<Tile, 2>(rows);
        case 3: return tile_for<Tile, 3>(rows);
        default: return tile_for<Tile, 4>(rows);
    }
}

// Vectors of columns side by side, `stride` from a row to the next.
struct Rows {
    float* start;
    long stride;

    float* operator[](long row) const { return start + row * stride; }
    Rows from(long row, long column) const { return {start + row * stride + column, stride}; }
};

// Elements that each go to all lanes: x[row][k].
struct Scalars {
    const float* start;
    long row, step;
};

// out (P rows, V vectors) = (out * factor, or zero) + x (P, count) times a panel (count, V vectors) whose rows are
// `panel_stride` apart.
template <int P, int V> struct Product {
    static void run(Scalars x, long count, const float* panel, long panel_stride, Rows out, bool add,
                    const float* factor) {
        Vector sums[P][V];
        const float* rows[P];
        for (int p = 0; p < P; p++) {
            rows[p] = x.start + p * x.row;
            for (int v = 0; v < V; v++) sums[p][v] = add ? load(out[p] + v * WIDTH) : Vector{};
        }
        if (factor)
            for (int p = 0; p < P; p++)
                for (int v = 0; v < V; v++) sums[p][v] *= load(factor + v * WIDTH);
        for (long k = 0, element = 0; k < count; k++, element += x.step, panel += panel_stride) {
            Vector columns[V];
            for (int v = 0; v < V; v++) columns[v] = load(panel + v * WIDTH);
#pragma GCC unroll 12
            for (int p = 0; p < P; p++) {
                Vector scalar = broadcast(rows[p][element]);
#pragma GCC unroll 4
                for (int v = 0; v < V; v++) sums[p][v] += scalar * columns[v];
            }
        }
        for (int p = 0; p < P; p++)
            for (int v = 0; v < V; v++) store(out[p] + v * WIDTH, sums[p][v]);
    }
};

}  // namespace
