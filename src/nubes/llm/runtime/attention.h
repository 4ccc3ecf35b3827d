/* Attention of rows to a paged KV cache, a tile of rows and a chunk of KV at a time, with an online softmax.

   A block holds, layer by layer, keys [kv_heads][head_dim][block_size] and values [kv_heads][block_size][head_dim]:
   keys lie across, so that a vector of sixteen scores needs no sum over lanes. */
#ifndef NUBES_ATTENTION_H
#define NUBES_ATTENTION_H

#include "kernels.h"

enum { CHUNK = 64, QUERIES = 96, MAX_HEAD = 256 };

/* Per thread. */
typedef struct {
    float q[QUERIES * MAX_HEAD], o[QUERIES * MAX_HEAD]; /* [queries][dim] */
    float s[QUERIES][CHUNK];
    float k[MAX_HEAD * CHUNK], v[CHUNK * MAX_HEAD]; /* [dim][CHUNK], [CHUNK][dim] */
    float top[QUERIES + LANES], fade[QUERIES + LANES];
    vf sum[QUERIES];
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
    multiply_f(rows, a, lda, b, ldb, k, acc);
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

/* Attend `n` queries in `t->q` (scaled already), `views[i]` saying what each sees, to one sequence's blocks of one
   layer and KV head. Leaves the result in `t->o`. `blocks` is the sequence's table; `keys` and `values` are where block
   0 would have them. */
INLINE void attend(attention_scratch *t, int n, const view *views, const int32_t *blocks, const char *keys,
                   const char *values, long block_bytes, int block_size, int dim, const int is_half) {
    int limit = 0, least = views[0].visible;
    for (int i = 0; i < n; i++) {
        const int h = horizon(views[i]);
        limit = h > limit ? h : limit;
        least = views[i].visible < least ? views[i].visible : least;
        t->top[i] = -1e30f;
        t->sum[i] = splat(0);
    }
    memset(t->o, 0, sizeof(float) * (size_t)(n * dim));
    for (int start = 0; start < limit; start += CHUNK) {
        const int tokens = limit - start < CHUNK ? limit - start : CHUNK, lanes = (tokens + LANES - 1) / LANES * LANES;
        for (int c = 0; c < lanes; c += LANES) { /* keys, and values, as floats */
            const int slot = start + c, offset = slot % block_size, later = slot + CHUNK < limit ? slot + CHUNK : slot;
            const long base = blocks[slot / block_size] * block_bytes,
                       ahead = blocks[later / block_size] * block_bytes - base;
            if (is_half) {
                const half *k = (const half *)(keys + base) + offset;
                for (int d = 0; d < dim; d++) {
                    store(t->k + d * CHUNK + c, load_half(k + d * block_size));
                    __builtin_prefetch((const char *)(k + d * block_size) + ahead, 0, 2);
                }
            } else {
                const float *k = (const float *)(keys + base) + offset;
                for (int d = 0; d < dim; d++) store(t->k + d * CHUNK + c, load(k + d * block_size));
            }
            const int count = tokens - c < LANES ? tokens - c : LANES; /* what lies behind may be another's NaN */
            if (is_half) {
                const half *v = (const half *)(values + base) + offset * dim;
                for (int i = 0; i < count * dim; i += LANES) {
                    store(t->v + c * dim + i, load_half(v + i));
                    __builtin_prefetch((const char *)(v + i) + ahead, 0, 2);
                }
            } else {
                memcpy(t->v + c * dim, (const float *)(values + base) + offset * dim,
                       sizeof(float) * (size_t)(count * dim));
            }
        }
        products(n, t->q, dim, t->k, CHUNK, dim, t->s[0], CHUNK, (lanes + PANEL - 1) / PANEL * PANEL, NULL);
        const int masked = start + lanes > least;
        float top[QUERIES + LANES];
        for (int i = 0; i < n; i++) {
            vf high = splat(t->top[i]);
            for (int c = 0; c < lanes; c += LANES) {
                vf x = load(t->s[i] + c);
                if (masked) store(t->s[i] + c, x = choose(seen(views[i], start + c), x, splat(-1e30f)));
                high = max_(high, x);
            }
            top[i] = top_(high);
        }
        for (int i = 0; i < n; i += LANES) {
            store(t->fade + i, exp_(load(t->top + i) - load(top + i)));
            store(t->top + i, load(top + i));
        }
        for (int i = 0; i < n; i++) {
            vf sum = t->sum[i] * splat(t->fade[i]);
            for (int c = 0; c < lanes; c += LANES) {
                vf p = exp_(load(t->s[i] + c) - splat(top[i]));
                if (masked) p = choose(seen(views[i], start + c), p, splat(0));
                store(t->s[i] + c, p);
                sum += p;
            }
            t->sum[i] = sum;
        }
        products(n, t->s[0], CHUNK, t->v, dim, tokens, t->o, dim, dim, t->fade);
    }
    for (int i = 0; i < n; i++) {
        const float sum = sum_(t->sum[i]);
        const vf inverse = splat(sum != 0 ? 1.0f / sum : 0);
        for (int d = 0; d < dim; d += LANES) store(t->o + i * dim + d, load(t->o + i * dim + d) * inverse);
    }
}

#endif
