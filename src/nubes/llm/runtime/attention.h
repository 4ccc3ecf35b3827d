/* Attention of rows to a paged KV cache, a tile of rows and a chunk of KV at a time, with an online softmax. */
#ifndef NUBES_ATTENTION_H
#define NUBES_ATTENTION_H

#include "kv.h"

enum { CHUNK = 64, QUERIES = 96, GROUPS = CHUNK / GROUP };

/* Per thread. */
typedef struct {
    float q[QUERIES * MAX_HEAD], o[QUERIES * MAX_HEAD]; /* [queries][dim] */
    float s[QUERIES][CHUNK];
    float top[QUERIES + LANES], fade[QUERIES + LANES], back[QUERIES];
    vf sum[QUERIES];
    float k[MAX_HEAD * CHUNK], v[CHUNK * MAX_HEAD]; /* floats: [dim][CHUNK], [CHUNK][dim] */
    int8_t bytes[QUERIES * MAX_HEAD];               /* bytes: the queries, and the weights of values */
    float scale[QUERIES], low[QUERIES], key_scale[CHUNK], value_scale[CHUNK];
    int32_t bias[QUERIES];
    int16_t p[QUERIES][CHUNK];
} attention_scratch;

/* What a row sees: slots below `visible`, and slot visible + b for each bit b of `extra`. */
typedef struct {
    int visible;
    uint64_t extra;
} view;

/* Which of the (up to sixteen) slots from `slot` on. */
INLINE uint16_t seen(view w, int slot) {
    const int n = w.visible - slot;
    uint32_t mask = n >= 16 ? 0xffff : n > 0 ? (1u << n) - 1 : 0;
    if (w.extra && n < 16 && n > -64) mask |= (uint32_t)(n >= 0 ? w.extra << n : w.extra >> -n) & 0xffff;
    return (uint16_t)mask;
}

/* Slots up to which a row sees anything. */
INLINE int horizon(view w) { return w.visible + (w.extra ? 64 - __builtin_clzll(w.extra) : 0); }

/* c[r] = c[r] * keep[r] + a[r] . b, or without the first term if `keep` is NULL. */
INLINE void product(const int rows, const float *a, long lda, const float *b, long ldb, int k, float *c, long ldc,
                    const float *keep) {
    vf acc[ROWS][ACROSS];
    multiply_f(rows, a, lda, b, ldb, k, (soon){0}, acc);
    for (int r = 0; r < rows; r++, c += ldc)
        for (int j = 0; j < ACROSS; j++)
            store(c + j * LANES, keep ? fma_(load(c + j * LANES), splat(keep[r]), acc[r][j]) : acc[r][j]);
}

static void products(int rows, const float *a, long lda, const float *b, long ldb, int k, float *c, long ldc,
                     int columns, const float *keep) {
    for (int r = 0; r < rows; r += ROWS) {
        const int n = rows - r < ROWS ? rows - r : ROWS;
        for (int j = 0; j < columns; j += PANEL)
            FOR_ROWS(n, product(N, a + r * lda, lda, b + j, ldb, k, c + r * ldc + j, ldc, keep ? keep + r : NULL))
    }
}

/* Floats: the keys and values of a chunk side by side, and the scores. */
static void scores_f(attention_scratch *t, int n, const kv_view *kv, int start, int tokens) {
    const int size = kv->block_size, dim = kv->dim;
    for (int c = 0; c < tokens; c += LANES) {
        const int slot = start + c, offset = slot % size;
        const long base = kv->blocks[slot / size] * kv->block_bytes;
        const float *k = (const float *)(kv->keys + base) + offset, *v = (const float *)(kv->values + base);
        for (int d = 0; d < dim; d++) store(t->k + d * CHUNK + c, load(k + d * size));
        const int count = tokens - c < LANES ? tokens - c : LANES; /* what lies behind may be another's NaN */
        memcpy(t->v + c * dim, v + offset * dim, sizeof(float) * (size_t)(count * dim));
    }
    products(n, t->q, dim, t->k, CHUNK, dim, t->s[0], CHUNK, (tokens + PANEL - 1) / PANEL * PANEL, NULL);
}

/* Scores of rows from `row` on and two groups of keys, of bytes. */
INLINE void score_tile(const int rows, attention_scratch *t, int row, int dim, const char *const *keys, int at) {
    vi acc[ROWS][ACROSS];
    const int8_t *q = t->bytes + row * dim;
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < ACROSS; j++) acc[r][j] = splat_i(t->bias[row + r]);
    for (int i = 0; i < dim; i += 4) {
        vi w[ACROSS];
        for (int j = 0; j < ACROSS; j++) w[j] = load_i(keys[j * LANES / GROUP] + i * GROUP + j * LANES % GROUP * 4);
        for (int r = 0; r < rows; r++) {
            int32_t x;
            memcpy(&x, q + r * dim + i, 4);
            for (int j = 0; j < ACROSS; j++) acc[r][j] = dot4(acc[r][j], w[j], x);
        }
    }
    for (int j = 0; j < ACROSS; j++) {
        const vf scale = load(t->key_scale + at + j * LANES);
        for (int r = 0; r < rows; r++)
            store(t->s[row + r] + at + j * LANES, to_float(acc[r][j]) * (scale * splat(t->scale[row + r])));
    }
}

/* o = o * fade + p . v for rows from `row` on and a panel of columns, of bytes. */
INLINE void mix_tile(const int rows, attention_scratch *t, int row, int dim, const char *const *values, int tokens,
                     int column) {
    vi acc[ROWS][ACROSS];
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < ACROSS; j++) acc[r][j] = splat_i(0);
    for (int i = 0; i < tokens; i += 2) {
        const int8_t *v = (const int8_t *)values[i / GROUP] + i % GROUP * dim + 2 * column;
        vi w[ACROSS];
        for (int j = 0; j < ACROSS; j++) w[j] = load_pairs(v + 2 * j * LANES);
        for (int r = 0; r < rows; r++) {
            int32_t x;
            memcpy(&x, t->p[row + r] + i, 4);
            for (int j = 0; j < ACROSS; j++) acc[r][j] = dot2(acc[r][j], w[j], x);
        }
    }
    for (int r = 0; r < rows; r++) {
        float *o = t->o + (row + r) * dim + column;
        for (int j = 0; j < ACROSS; j++)
            store(o + j * LANES, fma_(load(o + j * LANES), splat(t->fade[row + r]), to_float(acc[r][j]) * splat(t->back[row + r])));
    }
}

/* The power of two that makes weights of a chunk's values 15-bit numbers: by what a row sees of them, so that it is the
   same whoever else is in the tile. */
INLINE float widest(const float *scales, const view *w, int start) {
    vf most = splat(0);
    for (int c = 0; c < CHUNK; c += LANES)
        most = max_(w ? choose(seen(*w, start + c), load(scales + c), splat(0)) : load(scales + c), most);
    const float top = top_(most);
    int32_t bits;
    memcpy(&bits, &top, 4);
    const int exponent = (bits >> 23) - 126; /* top < 2^exponent */
    bits = (127 + 14 - (exponent < -60 ? -60 : exponent > 60 ? 60 : exponent)) << 23;
    float widen;
    memcpy(&widen, &bits, 4);
    return widen;
}

/* Where a chunk's KV is, of bytes; its scales side by side, 0 behind `tokens`. */
INLINE void gather(attention_scratch *t, const kv_view *kv, int start, int tokens, const char **keys,
                   const char **values) {
    for (int g = 0; g < GROUPS; g++) {
        const int slot = start + (g * GROUP < tokens ? g * GROUP : 0), offset = slot % kv->block_size;
        const long base = kv->blocks[slot / kv->block_size] * kv->block_bytes;
        const int count = tokens - g * GROUP;
        keys[g] = kv->keys + base + offset * kv->dim;
        values[g] = kv->values + base + offset * kv->dim;
        memcpy(t->key_scale + g * GROUP, kv->key_scales + base + offset * 4, 4 * GROUP);
        memcpy(t->value_scale + g * GROUP, kv->value_scales + base + offset * 4, 4 * GROUP);
        for (int i = count < 0 ? 0 : count; i < GROUP; i++) t->value_scale[g * GROUP + i] = 0;
    }
}

/* Few queries wait for memory, and what comes next is in blocks from anywhere. */
INLINE void fetch_chunk(const kv_view *kv, int start, int limit) {
    for (int slot = start; slot < limit && slot < start + CHUNK; slot += GROUP) {
        const long at = kv->blocks[slot / kv->block_size] * kv->block_bytes + slot % kv->block_size * kv->dim;
        for (int i = 0; i < GROUP * kv->dim; i += 64) {
            __builtin_prefetch(kv->keys + at + i, 0, 2);
            __builtin_prefetch(kv->values + at + i, 0, 2);
        }
    }
}

/* Scores to weights, exp(score - highest so far); `fade` is what earlier ones have to be multiplied with. The highest
   is rounded up to a power of two, so that bytes' weights are rounded alike wherever chunks begin. */
INLINE void soften(attention_scratch *t, int n, const view *views, int start, int lanes, int masked,
                   const int in_bytes) {
    float top[QUERIES + LANES];
    for (int i = 0; i < n; i++) {
        vf high = splat(t->top[i]);
        for (int c = 0; c < lanes; c += LANES) {
            vf x = load(t->s[i] + c);
            if (masked) store(t->s[i] + c, x = choose(seen(views[i], start + c), x, splat(-1e30f)));
            high = max_(high, x);
        }
        top[i] = ceilf(top_(high));
    }
    for (int i = 0; i < n; i += LANES) {
        store(t->fade + i, exp2_(load(t->top + i) - load(top + i)));
        store(t->top + i, load(top + i));
    }
    float widen = in_bytes && !masked ? widest(t->value_scale, NULL, start) : 0;
    for (int i = 0; i < n; i++) {
        vf sum = t->sum[i] * splat(t->fade[i]);
        if (in_bytes && masked) widen = widest(t->value_scale, views + i, start);
        t->back[i] = 1 / widen;
        for (int c = 0; c < lanes; c += LANES) {
            vf p = exp2_(load(t->s[i] + c) - splat(top[i]));
            if (masked) p = choose(seen(views[i], start + c), p, splat(0));
            sum += p;
            if (in_bytes) store_s16(t->p[i] + c, nearest(p * load(t->value_scale + c) * splat(widen)));
            else store(t->s[i] + c, p);
        }
        t->sum[i] = sum;
    }
}

/* Attend `n` queries in `t->q` (scaled already, for powers of two), `views[i]` saying what each sees, to one sequence's
   KV. Leaves the result in `t->o`. */
INLINE void attend(attention_scratch *t, int n, const view *views, const kv_view *kv, const int in_bytes) {
    const int dim = kv->dim;
    int limit = 0, least = views[0].visible;
    for (int i = 0; i < n; i++) {
        const int h = horizon(views[i]);
        limit = h > limit ? h : limit;
        least = views[i].visible < least ? views[i].visible : least;
        t->top[i] = -1e30f;
        t->sum[i] = splat(0);
        if (in_bytes) quantise(t->q + i * dim, dim, dim, t->bytes + i * dim, t->scale + i, t->low + i, t->bias + i);
    }
    memset(t->o, 0, sizeof(float) * (size_t)(n * dim));
    for (int start = 0; start < limit; start += CHUNK) {
        const int tokens = limit - start < CHUNK ? limit - start : CHUNK, lanes = (tokens + GROUP - 1) / GROUP * GROUP;
        const int masked = start + lanes > least;
        if (!in_bytes) {
            scores_f(t, n, kv, start, tokens);
            soften(t, n, views, start, lanes, masked, 0);
            products(n, t->s[0], CHUNK, t->v, dim, tokens, t->o, dim, dim, t->fade);
            continue;
        }
        const char *keys[GROUPS], *values[GROUPS];
        gather(t, kv, start, tokens, keys, values);
        if (n <= ROWS) fetch_chunk(kv, start + CHUNK, limit);
        for (int r = 0; r < n; r += ROWS)
            for (int c = 0; c < lanes; c += PANEL)
                FOR_ROWS(n - r < ROWS ? n - r : ROWS, score_tile(N, t, r, dim, keys + c / GROUP, c))
        soften(t, n, views, start, lanes, masked, 1);
        for (int r = 0; r < n; r += ROWS)
            for (int d = 0; d < dim; d += PANEL)
                FOR_ROWS(n - r < ROWS ? n - r : ROWS, mix_tile(N, t, r, dim, values, lanes, d))
    }
    for (int i = 0; i < n; i++) {
        const float sum = sum_(t->sum[i]);
        const vf inverse = splat(sum != 0 ? 1.0f / sum : 0);
        for (int d = 0; d < dim; d += LANES) store(t->o + i * dim + d, load(t->o + i * dim + d) * inverse);
    }
}

#endif
