/* Tiles of matrix products, for weights in panels of 32 outputs.

   A panel holds, group by group along the inner dimension, what one step of a tile reads, so that memory is read once
   and in order:

     FP32   per input: 32 floats
     INT8   per 32 inputs: 32 half scales, then [8 steps][32 outputs][4 inputs] bytes, weight + 128
     INT4   per 32 inputs: 32 half scales, 32 half offsets, then [4 steps][32 outputs][4 inputs] bytes: the lower
            nibbles are the inputs of step 2i, the upper ones those of step 2i + 1; weight = scale * nibble + offset
     WIDE4  INT4 with a byte for each nibble, [8 steps][32 outputs][4 inputs]: what INT4 is spread into for many rows

   Inputs of all but FP32 are rounded to signed bytes with a scale for each row and group of 32. */
#ifndef NUBES_KERNELS_H
#define NUBES_KERNELS_H

#include <math.h>
#include "vec.h"

enum { FP32, INT8, INT4, WIDE4 };
enum { PANEL = 32, GROUP = 32 }; /* a tile is at most ROWS x PANEL */

typedef struct {
    int32_t kind, outputs, inputs, unused;
    const uint8_t *data;
} matrix;

/* Rows that go into a product: floats for FP32, else bytes. `low` is scale * sum of the bytes, `bias` is -128 * that
 * sum. */
typedef struct {
    float *f;
    int8_t *q;
    float *scale, *low;
    int32_t *bias;
} inputs;

INLINE long group_bytes(int kind) {
    return kind == FP32 ? GROUP * PANEL * 4 : kind == INT8 ? 64 + 1024 : kind == INT4 ? 128 + 512 : 128 + 1024;
}
INLINE long panel_bytes(const matrix *m) { return m->inputs / GROUP * group_bytes(m->kind); }

/* `k` floats to bytes, GROUP by GROUP. A NaN makes its group's scale NaN: it stays visible, in its own row. */
INLINE void quantise(const float *x, int k, int8_t *q, float *scale, float *low, int32_t *bias) {
    for (int g = 0; g < k / GROUP; g++, x += GROUP, q += GROUP) {
        const vf a = load(x), b = load(x + LANES);
        const float top = top16(max16(abs16(a), abs16(b)));
        const vf inverse = splat(top > 0 ? 127.0f / top : 0);
        const vi qa = round16(a * inverse), qb = round16(b * inverse);
        const int32_t sum = sum16_i(qa + qb);
        store_s8(q, qa);
        store_s8(q + LANES, qb);
        scale[g] = nans(a) | nans(b) ? NAN : top / 127.0f;
        low[g] = scale[g] * (float)sum;
        bias[g] = -128 * sum;
    }
}

/* acc[r][0..1] = a[r] . b for `rows` rows of `a` and 32 columns of `b`. */
INLINE void multiply_f(const int rows, const float *a, long lda, const float *b, long ldb, int k, vf acc[][2]) {
    for (int r = 0; r < rows; r++) acc[r][0] = acc[r][1] = splat(0);
    for (int i = 0; i < k; i++, b += ldb) {
        const vf b0 = load(b), b1 = load(b + LANES);
        for (int r = 0; r < rows; r++) {
            const vf x = splat(a[r * lda + i]);
            acc[r][0] = fma16(x, b0, acc[r][0]);
            acc[r][1] = fma16(x, b1, acc[r][1]);
        }
    }
}

/* What is needed after this tile: so many lines of 64 bytes are fetched with each group. */
typedef struct {
    const uint8_t *at;
    int lines;
} soon;

INLINE void multiply_q(const int rows, const int kind, const inputs *in, long row, const uint8_t *panel, int groups,
                       soon next, vf acc[][2]) {
    const long k = (long)groups * GROUP;
    const int8_t *q = in->q + row * k;
    const long first = row * groups;
    for (int r = 0; r < rows; r++) acc[r][0] = acc[r][1] = splat(0);
    for (int g = 0; g < groups; g++, q += GROUP, panel += group_bytes(kind)) {
        const uint8_t *w = panel + (kind == INT8 ? 64 : 128);
        for (int i = 0; i < next.lines; i++, next.at += 64) __builtin_prefetch(next.at, 0, 2);
        vi s[ROWS][2];
        for (int r = 0; r < rows; r++) s[r][0] = s[r][1] = splat_i(kind == INT8 ? in->bias[first + r * groups + g] : 0);
        for (int step = 0; step < 8; step++) {
            vi w0, w1;
            if (kind == INT4) {
                const vi p0 = load_i(w + step / 2 * 128), p1 = load_i(w + step / 2 * 128 + 64);
                w0 = step % 2 ? upper(p0) : lower(p0);
                w1 = step % 2 ? upper(p1) : lower(p1);
            } else {
                w0 = load_i(w + step * 128);
                w1 = load_i(w + step * 128 + 64);
            }
            for (int r = 0; r < rows; r++) {
                int32_t x;
                memcpy(&x, q + r * k + step * 4, 4);
                s[r][0] = dot4(s[r][0], w0, x);
                s[r][1] = dot4(s[r][1], w1, x);
            }
        }
        const half *scales = (const half *)panel;
        const vf d0 = load_half(scales), d1 = load_half(scales + LANES);
        for (int r = 0; r < rows; r++) {
            const vf d = splat(in->scale[first + r * groups + g]);
            acc[r][0] = fma16(to_float(s[r][0]), d0 * d, acc[r][0]);
            acc[r][1] = fma16(to_float(s[r][1]), d1 * d, acc[r][1]);
        }
        if (kind != INT8) {
            const vf m0 = load_half(scales + 32), m1 = load_half(scales + 48);
            for (int r = 0; r < rows; r++) {
                const vf low = splat(in->low[first + r * groups + g]);
                acc[r][0] = fma16(m0, low, acc[r][0]);
                acc[r][1] = fma16(m1, low, acc[r][1]);
            }
        }
    }
}

/* One panel's product with rows `row` ... `row + rows - 1`; the compiler makes one kernel for each number of rows. */
INLINE void multiply_kind(const int rows, const matrix *m, const uint8_t *panel, int kind, const inputs *in, long row,
                          soon next, vf acc[][2]) {
    switch (kind) {
    case FP32: multiply_f(rows, in->f + row * m->inputs, m->inputs, (const float *)panel, PANEL, m->inputs, acc); break;
    case INT8: multiply_q(rows, INT8, in, row, panel, m->inputs / GROUP, next, acc); break;
    case INT4: multiply_q(rows, INT4, in, row, panel, m->inputs / GROUP, next, acc); break;
    default: multiply_q(rows, WIDE4, in, row, panel, m->inputs / GROUP, next, acc);
    }
}

/* `call` with N as a constant, 1 ... ROWS: the compiler makes a kernel for each. */
#define CASE(n, call)                                                                                                  \
    case n: {                                                                                                          \
        enum { N = n };                                                                                                \
        call;                                                                                                          \
    } break;
#if ROWS == 6
#define FOR_ROWS(rows, call)                                                                                           \
    switch (rows) { CASE(1, call) CASE(2, call) CASE(3, call) CASE(4, call) CASE(5, call) CASE(6, call) }
#else
#define FOR_ROWS(rows, call)                                                                                           \
    switch (rows) { CASE(1, call) CASE(2, call) }
#endif

#endif
