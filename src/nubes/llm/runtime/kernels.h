/* Tiles of matrix products, for weights in panels of 32 outputs.

   A panel holds, group by group along the inner dimension, what one step of a tile reads, so that memory is read once
   and in order:

     FP32   per input: 32 floats
     INT8   per group of inputs: 32 half scales, then [steps][32 outputs][4 inputs] bytes, weight + 128
     INT4   per 32 inputs: 32 half scales, 32 half offsets, then [4 steps][32 outputs][4 inputs] bytes: the lower
            nibbles are the inputs of step 2i, the upper ones those of step 2i + 1; weight = scale * nibble + offset
     WIDE4  INT4 with a byte for each nibble, [8 steps][32 outputs][4 inputs]: what INT4 is spread into for many rows

   A group is 32 inputs, of INT8 matrices any multiple: the larger, the less there is to do besides multiplying. Rows
   that are multiplied with all but FP32 are rounded to signed bytes, with a scale for each row and group. */
#ifndef NUBES_KERNELS_H
#define NUBES_KERNELS_H

#include <math.h>
#include "vec.h"

enum { FP32, INT8, INT4, WIDE4 };
enum { PANEL = 32, PART = 32, STEPS = 8, ACROSS = PANEL / LANES }; /* a tile is at most ROWS x PANEL */

typedef struct {
    int32_t kind, outputs, inputs, group;
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

INLINE long head_bytes(int kind) { return kind == FP32 ? 0 : kind == INT8 ? 64 : 128; } /* of a group */
INLINE long part_bytes(int kind) { return PART * PANEL * (kind == FP32 ? 8 : kind == INT4 ? 1 : 2) / 2; }
INLINE long group_bytes(int kind, int group) { return head_bytes(kind) + group / PART * part_bytes(kind); }
INLINE long panel_bytes(const matrix *m) { return m->inputs / m->group * group_bytes(m->kind, m->group); }

/* `k` floats to bytes, group by group. A NaN makes its group's scale NaN: it stays visible, in its own row. */
INLINE void quantise(const float *x, int k, int group, int8_t *q, float *scale, float *low, int32_t *bias) {
    for (int g = 0; g < k / group; g++, x += group, q += group) {
        vf most = splat(0);
        vi sums = splat_i(0);
        int broken = 0;
        for (int i = 0; i < group; i += LANES) {
            most = max_(most, abs_(load(x + i)));
            broken |= nans(load(x + i));
        }
        const float top = top_(most);
        const vf inverse = splat(top > 0 ? 127.0f / top : 0);
        for (int i = 0; i < group; i += LANES) {
            const vi rounded = round_(load(x + i) * inverse);
            store_s8(q + i, rounded);
            sums += rounded;
        }
        const int32_t sum = sum_i(sums);
        scale[g] = broken ? NAN : top / 127.0f;
        low[g] = scale[g] * (float)sum;
        bias[g] = -128 * sum;
    }
}

/* What is needed after this tile: so many lines of 64 bytes are fetched with so many inputs, or part of a group of bytes.
   Not many at once: a core waits for few lines at a time, and those that it needs now come after them. */
typedef struct {
    const uint8_t *at, *end;
    int lines;
} soon;

INLINE void fetch(soon *next) {
    if (next->at >= next->end) return;
    for (int i = 0; i < next->lines; i++, next->at += 64) __builtin_prefetch(next->at, 0, 2);
}

INLINE void multiply_one(const int rows, const float *a, long lda, const float *b, vf acc[][ACROSS]) {
    vf w[ACROSS];
    for (int j = 0; j < ACROSS; j++) w[j] = load(b + j * LANES);
    for (int r = 0; r < rows; r++) {
        const vf x = splat(a[r * lda]);
        for (int j = 0; j < ACROSS; j++) acc[r][j] = fma_(x, w[j], acc[r][j]);
    }
}

/* acc[r] = a[r] . b for `rows` rows of `a` and a panel's columns of `b`. */
INLINE void multiply_f(const int rows, const float *a, long lda, const float *b, long ldb, int k, soon next,
                       vf acc[][ACROSS]) {
    int i = 0;
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < ACROSS; j++) acc[r][j] = splat(0);
    for (; i + STEPS <= k; i += STEPS) {
        fetch(&next);
        for (int s = 0; s < STEPS; s++) multiply_one(rows, a + i + s, lda, b + (i + s) * ldb, acc);
    }
    for (; i < k; i++) multiply_one(rows, a + i, lda, b + i * ldb, acc);
}

INLINE void multiply_q(const int rows, const int kind, const inputs *in, long row, const uint8_t *panel, int groups,
                       int parts, soon next, vf acc[][ACROSS]) {
    const long k = (long)groups * parts * PART, first = row * groups;
    const int8_t *q = in->q + row * k;
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < ACROSS; j++) acc[r][j] = splat(0);
    for (int g = 0; g < groups; g++) {
        const half *scales = (const half *)panel, *offsets = scales + PANEL;
        panel += head_bytes(kind);
        vi s[ROWS][ACROSS];
        for (int r = 0; r < rows; r++)
            for (int j = 0; j < ACROSS; j++) s[r][j] = splat_i(kind == INT8 ? in->bias[first + r * groups + g] : 0);
        for (int part = 0; part < parts; part++, q += PART, panel += part_bytes(kind)) {
            fetch(&next);
            for (int step = 0; step < PART / 4; step++) {
                vi w[ACROSS];
                for (int j = 0; j < ACROSS; j++) {
                    const vi v = load_i(panel + (kind == INT4 ? step / 2 : step) * 4 * PANEL + j * 4 * LANES);
                    w[j] = kind != INT4 ? v : step % 2 ? upper(v) : lower(v);
                }
                for (int r = 0; r < rows; r++) {
                    int32_t x;
                    memcpy(&x, q + r * k + step * 4, 4);
                    for (int j = 0; j < ACROSS; j++) s[r][j] = dot4(s[r][j], w[j], x);
                }
            }
        }
        for (int j = 0; j < ACROSS; j++) {
            const vf d = load_half(scales + j * LANES);
            for (int r = 0; r < rows; r++)
                acc[r][j] = fma_(to_float(s[r][j]), d * splat(in->scale[first + r * groups + g]), acc[r][j]);
            if (kind == INT8) continue;
            const vf m = load_half(offsets + j * LANES);
            for (int r = 0; r < rows; r++) acc[r][j] = fma_(m, splat(in->low[first + r * groups + g]), acc[r][j]);
        }
    }
}

/* One panel's product with rows `row` ... `row + rows - 1`; the compiler makes one kernel for each number of rows. */
INLINE void multiply_kind(const int rows, const matrix *m, const uint8_t *panel, int kind, const inputs *in, long row,
                          soon next, vf acc[][ACROSS]) {
    const int groups = m->inputs / m->group;
    switch (kind) {
    case FP32: multiply_f(rows, in->f + row * m->inputs, m->inputs, (const float *)panel, PANEL, m->inputs, next, acc); break;
    case INT8: multiply_q(rows, INT8, in, row, panel, groups, m->group / PART, next, acc); break;
    case INT4: multiply_q(rows, INT4, in, row, panel, groups, 1, next, acc); break;
    default: multiply_q(rows, WIDE4, in, row, panel, groups, 1, next, acc);
    }
}

/* `call` with N as a constant, 1 ... ROWS: the compiler makes a kernel for each. */
#define CASE(n, call)                                                                                                  \
    case n: {                                                                                                          \
        enum { N = n };                                                                                                \
        call;                                                                                                          \
    } break;
#if ROWS == 12
#define FOR_ROWS(rows, call)                                                                                           \
    switch (rows) {                                                                                                    \
        CASE(1, call) CASE(2, call) CASE(3, call) CASE(4, call) CASE(5, call) CASE(6, call)                            \
        CASE(7, call) CASE(8, call) CASE(9, call) CASE(10, call) CASE(11, call) CASE(12, call)                         \
    }
#else
#define FOR_ROWS(rows, call)                                                                                           \
    switch (rows) { CASE(1, call) CASE(2, call) }
#endif

#endif
