/* Products of all rows with some panels of a matrix, and what becomes of them. */
#ifndef NUBES_LINEAR_H
#define NUBES_LINEAR_H

#include "kernels.h"

enum { PUT, ADD, GATED };  /* stored, added to what is there, or silu(first half of a panel) * second half */
enum { CACHED = 1 << 20 }; /* bytes of inputs and outputs that stay in a core's cache while weights pass by */

/* Spread nibbles over bytes. */
static void widen(const uint8_t *from, uint8_t *to, int groups) {
    for (int g = 0; g < groups; g++, from += group_bytes(INT4, PART), to += group_bytes(WIDE4, PART)) {
        memcpy(to, from, 128);
        for (int i = 0; i < 512; i += 4 * LANES) {
            const vi v = load_i(from + 128 + i);
            uint8_t *at = to + 128 + i / 128 * 256 + i % 128; /* two steps of 128 bytes come of one */
            store_i(at, lower(v));
            store_i(at + 128, upper(v));
        }
    }
}

INLINE void finish(int op, int rows, vf acc[][ACROSS], float *out, long stride, int panel, int columns) {
    const int at = panel * PANEL;
    for (int r = 0; r < rows; r++, out += stride) {
        if (op == PUT && at + PANEL > columns) {
            memcpy(out + at, acc[r], sizeof(float) * (size_t)(columns - at));
            continue;
        }
        for (int j = 0; j < (op == GATED ? ACROSS / 2 : ACROSS); j++) {
            const vf x = acc[r][j];
            float *to = out + (op == GATED ? at / 2 : at) + j * LANES;
            if (op == GATED) store(to, x / (splat(1) + exp2_(max_(splat(-87), x) * splat(-LOG2_E))) * acc[r][j + ACROSS / 2]);
            else store(to, op == ADD ? load(to) + x : x);
        }
    }
}

INLINE void one_tile(const int rows, const matrix *m, const uint8_t *panel, int kind, const inputs *in, long row,
                     int op, float *out, long stride, int p, soon next) {
    vf acc[ROWS][ACROSS];
    multiply_kind(rows, m, panel, kind, in, row, next, acc);
    finish(op, rows, acc, out, stride, p, m->outputs);
}

static int panels(const matrix *m) { return (m->outputs + PANEL - 1) / PANEL; }

/* What tile `i` of `tiles` fetches of the panel after this one. */
INLINE soon ahead(const matrix *m, const uint8_t *panel, int i, int tiles) {
    const int steps = m->kind == FP32 ? m->inputs / STEPS : m->inputs / PART;
    const int each = (int)((panel_bytes(m) / 64 + (long)steps * tiles - 1) / ((long)steps * tiles));
    const uint8_t *next = panel + panel_bytes(m);
    return (soon){next + 64L * each * steps * i, next + panel_bytes(m), each};
}

/* Panels `begin` ... `end - 1` for `rows` rows of `in` from `first` on, panel by panel, each for all rows that the cache
   holds. `out` is where the first row goes. `wide` has room for one panel as WIDE4. */
static void linear(const matrix *m, const inputs *in, long first, int rows, int begin, int end, int op, float *out,
                   long stride, uint8_t *wide) {
    const int row_bytes = m->inputs * (m->kind == FP32 ? 4 : 1) + (end - begin) * PANEL * (op == GATED ? 2 : 4);
    const int fit = CACHED / row_bytes, most = fit > ROWS ? fit : ROWS;
    const int chunks = (rows + most - 1) / most;
    for (int c = 0; c < chunks; c++) {
        const int start = (int)((long)rows * c / chunks), count = (int)((long)rows * (c + 1) / chunks) - start;
        const int tiles = (count + ROWS - 1) / ROWS;
        for (int p = begin; p < end; p++) {
            const uint8_t *panel = m->data + p * panel_bytes(m);
            const int spread = m->kind == INT4 && tiles > 1;
            if (spread) widen(panel, wide, m->inputs / PART);
            for (int i = 0; i < tiles; i++) {
                const int row = start + count * i / tiles, n = start + count * (i + 1) / tiles - row;
                const soon next = p + 1 < end ? ahead(m, panel, i, tiles) : (soon){0};
                FOR_ROWS(n, one_tile(N, m, spread ? wide : panel, spread ? WIDE4 : m->kind, in, first + row, op,
                                     out + row * stride, stride, p, next))
            }
        }
    }
}

#endif
