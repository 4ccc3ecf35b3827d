#include "runtime.h"

#include <stdatomic.h>
#include <stdlib.h>

#include "attention.h"
#include "linear.h"
#include "pool.h"

typedef struct {
    int first, count;
} tile; /* rows of one sequence that are side by side */

struct engine {
    model m;
    pool *threads;
    long capacity; /* rows that the buffers below are made for */
    inputs normed, attended, inside; /* what goes into products: a row of each is one thread's */
    float *qkv;
    tile *tiles;
    int tile_count;
    attention_scratch *attention; /* per thread */
    uint8_t *wide;
    long wide_bytes;
    atomic_int next; /* piece of attention that nobody took yet */
    const batch *b_now;
    int by_rows; /* what threads share: rows, or panels */
};

enum { BLOCK = 96 }; /* rows of a thread that go through a layer together */

static void *take(size_t bytes) { return aligned_alloc(64, (bytes + 63) / 64 * 64); }

static int make_inputs(inputs *in, long values) {
    in->f = take((size_t)values * 4);
    in->q = take((size_t)values);
    in->scale = take((size_t)values / PART * 4);
    in->low = take((size_t)values / PART * 4);
    in->bias = take((size_t)values / PART * 4);
    return in->f && in->q && in->scale && in->low && in->bias;
}

static void free_inputs(inputs *in) {
    free(in->f);
    free(in->q);
    free(in->scale);
    free(in->low);
    free(in->bias);
    *in = (inputs){0};
}

static void release(engine *e) {
    free_inputs(&e->normed);
    free_inputs(&e->attended);
    free_inputs(&e->inside);
    free(e->qkv);
    free(e->tiles);
    e->qkv = NULL;
    e->tiles = NULL;
    e->capacity = 0;
}

static int reserve(engine *e, long rows) {
    if (rows <= e->capacity) return 0;
    const model *m = &e->m;
    const long heads = (long)m->heads * m->head_dim, qkv = heads + 2L * m->kv_heads * m->head_dim;
    release(e);
    const int good = make_inputs(&e->normed, rows * m->hidden) & make_inputs(&e->attended, rows * heads) &
                     make_inputs(&e->inside, rows * m->ffn);
    e->qkv = take((size_t)(rows * qkv) * 4);
    e->tiles = malloc((size_t)rows * sizeof *e->tiles);
    if (!good || !e->qkv || !e->tiles) {
        release(e);
        return -1;
    }
    e->capacity = rows;
    return 0;
}

/* Columns `at` ... `at + count - 1` of a row that goes into `m`. */
INLINE void to_bytes(const inputs *in, const matrix *m, const float *x, long row, int at, int count) {
    const long to = row * m->inputs + at, g = to / m->group;
    quantise(x, count, m->group, in->q + to, in->scale + g, in->low + g, in->bias + g);
}

static void norm(const engine *e, const float *x, const float *weight, long row, const matrix *m) {
    const int k = e->m.hidden;
    float *to = e->normed.f + row * k;
    vf square = splat(0);
    for (int i = 0; i < k; i += LANES) square = fma_(load(x + i), load(x + i), square);
    const vf scale = splat(1.0f / sqrtf(sum_(square) / (float)k + e->m.eps));
    for (int i = 0; i < k; i += LANES) store(to + i, load(x + i) * scale * load(weight + i));
    if (m->kind != FP32) to_bytes(&e->normed, m, to, row, 0, k);
}

static void embed(const matrix *m, int32_t token, float *x) {
    const uint8_t *p = m->data + token / PANEL * panel_bytes(m);
    const int lane = token % PANEL;
    for (int i = 0; i < m->inputs; i++) {
        if (m->kind == FP32) {
            x[i] = ((const float *)p)[(long)i * PANEL + lane];
            continue;
        }
        const uint8_t *group = p + i / m->group * group_bytes(m->kind, m->group);
        const int step = i % m->group / 4, in = lane * 4 + i % 4;
        const float scale = (float)((const half *)group)[lane];
        if (m->kind == INT8) x[i] = scale * (float)(group[64 + step * 128 + in] - 128);
        else {
            const int byte = group[128 + step / 2 * 128 + in];
            x[i] = scale * (float)(step % 2 ? byte >> 4 : byte & 15) + (float)((const half *)group)[32 + lane];
        }
    }
}

INLINE void turn(float *x, const float *rope, int dim) {
    for (int i = 0; i < dim / 2; i += LANES) {
        const vf a = load(x + i), b = load(x + dim / 2 + i), cosine = load(rope + i), sine = load(rope + dim / 2 + i);
        store(x + i, a * cosine - b * sine);
        store(x + dim / 2 + i, b * cosine + a * sine);
    }
}

/* Rotate a row's queries and keys, and keep keys and values. */
static void place(const engine *e, const batch *b, int layer, int row) {
    const model *m = &e->m;
    const int dim = m->head_dim;
    float *q = e->qkv + (long)row * (m->heads + 2 * m->kv_heads) * dim, *k = q + m->heads * dim,
          *v = k + m->kv_heads * dim;
    for (float *head = q; head < v; head += dim) turn(head, m->rope + (long)b->positions[row] * dim, dim);
    for (int h = 0; h < m->kv_heads; h++, k += dim, v += dim) {
        const kv_view kv = kv_of(m, b, b->sequence[row], layer, h);
        if (m->byte_kv) put(&kv, b->slots[row], k, v, 1);
        else put(&kv, b->slots[row], k, v, 0);
    }
}

/* Attention of a tile of rows and one KV head. */
static void look(engine *e, const batch *b, int t, int layer, tile w, int kv_head, const matrix *out) {
    const model *m = &e->m;
    attention_scratch *s = e->attention + t;
    const int dim = m->head_dim, group = m->heads / m->kv_heads, width = m->heads * dim;
    const float scale = LOG2_E / sqrtf((float)dim);
    const kv_view kv = kv_of(m, b, b->sequence[w.first], layer, kv_head);
    for (int from = 0; from < group;
         from += QUERIES) { /* more than one round only if the group is larger than a tile */
        const int heads = group - from < QUERIES ? group - from : QUERIES, head = kv_head * group + from,
                  n = w.count * heads;
        view views[QUERIES];
        for (int i = 0; i < n; i++) {
            const int row = w.first + i / heads;
            const float *q = e->qkv + ((long)row * (m->heads + 2 * m->kv_heads) + head + i % heads) * dim;
            for (int d = 0; d < dim; d += LANES) store(s->q + i * dim + d, load(q + d) * splat(scale));
            views[i] = (view){b->visible[row], b->extra ? b->extra[row] : 0};
        }
        if (m->byte_kv) attend(s, n, views, &kv, 1);
        else attend(s, n, views, &kv, 0);
        for (int i = 0; i < n; i++) {
            const int row = w.first + i / heads, at = (head + i % heads) * dim;
            if (out->kind != FP32) to_bytes(&e->attended, out, s->o + i * dim, row, at, dim);
            if (out->kind == FP32 || b->lora)
                memcpy(e->attended.f + (long)row * width + at, s->o + i * dim, sizeof(float) * (size_t)dim);
        }
    }
}

/* Few rows: each thread has some panels of every product, and all wait for all. Many: each has rows of its own, in
   blocks that stay in its cache from one product to the next. */
static void meet(engine *e) {
    if (!e->by_rows) pool_barrier(e->threads);
}

/* A product of rows `begin` ... `end - 1` of this thread, or its panels, from `from` on, of all rows. The threads' rows of
   `in` and `out` start `in_row` and `out_row` before `begin`. */
static void product_of(engine *e, int t, const matrix *m, const inputs *in, int in_row, int begin, int end, int from,
                       int op, float *out, int out_row, long stride) {
    uint8_t *wide = e->wide + t * e->wide_bytes;
    const int n = panels(m) - from;
    if (e->by_rows) {
        linear(m, in, begin - in_row, end - begin, from, from + n, op, out + (begin - out_row) * stride, stride, wide);
        return;
    }
    linear(m, in, 0, e->b_now->rows, from + n * t / e->m.threads, from + n * (t + 1) / e->m.threads, op, out, stride,
           wide);
    pool_barrier(e->threads);
}

/* Up to the cache: rows `begin` ... `end - 1`. */
static void before_attention(engine *e, const batch *b, int t, int layer, int begin, int end) {
    const model *m = &e->m;
    const matrix *w = m->matrices + layer * PER_LAYER + QKV;
    const int hidden = m->hidden, qkv = (m->heads + 2 * m->kv_heads) * m->head_dim;
    for (int r = begin; r < end; r++) {
        if (b->keep)
            memcpy(b->keep + ((long)layer * b->rows + r) * hidden, b->x + (long)r * hidden,
                   sizeof(float) * (size_t)hidden);
        norm(e, b->x + (long)r * hidden, m->norms + (long)layer * 2 * hidden, r, w);
    }
    if (b->lora) lora_shrink(b->lora, layer, Q, 3, e->normed.f, hidden, begin, end);
    meet(e);
    product_of(e, t, w, &e->normed, 0, begin, end, b->project ? m->heads * m->head_dim / PANEL : 0, PUT, e->qkv, 0, qkv);
    if (b->lora) lora_expand(b->lora, layer, Q, 3, begin, end, 0, qkv, e->qkv, qkv);
    for (int r = begin; r < end; r++) place(e, b, layer, r);
}

/* From what was attended to the next layer's input: rows `begin` ... `end - 1`. */
static void after_attention(engine *e, const batch *b, int t, int layer, int begin, int end) {
    const model *m = &e->m;
    const matrix *w = m->matrices + layer * PER_LAYER;
    const int hidden = m->hidden, inside = e->by_rows ? begin - t * BLOCK : 0; /* a block's inside is used again */
    const float *weight = m->norms + ((long)layer * 2 + 1) * hidden;
    if (b->lora) lora_shrink(b->lora, layer, O, 1, e->attended.f, m->heads * m->head_dim, begin, end);
    product_of(e, t, w + OUT, &e->attended, 0, begin, end, 0, ADD, b->x, 0, hidden);
    if (b->lora) lora_expand(b->lora, layer, O, 1, begin, end, 0, hidden, b->x, hidden);
    for (int r = begin; r < end; r++) norm(e, b->x + (long)r * hidden, weight, r, w + GATE_UP);
    meet(e);
    product_of(e, t, w + GATE_UP, &e->normed, 0, begin, end, 0, GATED, e->inside.f, inside, m->ffn);
    if (w[DOWN].kind != FP32) {
        for (int r = begin - inside; r < end - inside; r++)
            to_bytes(&e->inside, w + DOWN, e->inside.f + (long)r * m->ffn, r, 0, m->ffn);
        meet(e);
    }
    product_of(e, t, w + DOWN, &e->inside, inside, begin, end, 0, ADD, b->x, 0, hidden);
}

static void one_layer(engine *e, const batch *b, int t, int layer) {
    const model *m = &e->m;
    const int begin = b->lora ? b->lora->bounds[t] : (int)((long)b->rows * t / m->threads),
              end = b->lora ? b->lora->bounds[t + 1] : (int)((long)b->rows * (t + 1) / m->threads);
    const int blocks = e->by_rows ? (end - begin + BLOCK - 1) / BLOCK : 1; /* of as many rows each */
    const int block = blocks > 1 ? (end - begin + blocks - 1) / blocks : b->rows;
    int r = begin;
    do before_attention(e, b, t, layer, r, end - r < block ? end : r + block);
    while ((r += block) < end);
    if (t == 0) atomic_store(&e->next, 0);
    pool_barrier(e->threads);
    if (b->project) return;
    for (int i; (i = atomic_fetch_add(&e->next, 1)) < e->tile_count * m->kv_heads;)
        look(e, b, t, layer, e->tiles[e->tile_count - 1 - i / m->kv_heads], i % m->kv_heads,
             m->matrices + layer * PER_LAYER + OUT); /* long ones first */
    pool_barrier(e->threads);
    r = begin;
    do after_attention(e, b, t, layer, r, end - r < block ? end : r + block);
    while ((r += block) < end);
}

static void run(void *argument, int t) {
    engine *e = argument;
    const batch *b = e->b_now;
    const model *m = &e->m;
    const matrix *embedding = m->matrices + m->layers * PER_LAYER, *head = embedding + 1;
    if (b->tokens) {
        for (int r = b->rows * t / m->threads; r < b->rows * (t + 1) / m->threads; r++)
            embed(embedding, b->tokens[r], b->x + (long)r * m->hidden);
        pool_barrier(e->threads);
    }
    for (int layer = b->first; layer < b->last; layer++) one_layer(e, b, t, layer);
    if (!b->wanted) return;
    if (e->by_rows) pool_barrier(e->threads); /* anybody's rows may be wanted */
    for (int i = b->wanted * t / m->threads; i < b->wanted * (t + 1) / m->threads; i++)
        norm(e, b->x + (long)b->outputs[i] * m->hidden, m->norms + 2L * m->layers * m->hidden, i, head);
    pool_barrier(e->threads);
    const int n = panels(head);
    linear(head, &e->normed, 0, b->wanted, n * t / m->threads, n * (t + 1) / m->threads, PUT, b->logits, m->vocab,
           e->wide + t * e->wide_bytes);
}

/* Neighbouring rows of a sequence share what is read of its KV. */
static void tile_rows(engine *e, const batch *b) {
    const int group = e->m.heads / e->m.kv_heads, most = group < QUERIES ? QUERIES / group : 1;
    e->tile_count = 0;
    for (int r = 0; r < b->rows; r++) {
        tile *last = e->tiles + e->tile_count - 1;
        if (r && last->count < most && b->sequence[r] == b->sequence[r - 1]) last->count++;
        else e->tiles[e->tile_count++] = (tile){r, 1};
    }
}

engine *nubes_open(const model *m) {
    engine *e = calloc(1, sizeof *e);
    if (!e) return NULL;
    e->m = *m;
    const int widest = m->hidden > m->ffn ? m->hidden : m->ffn, heads = m->heads * m->head_dim;
    e->wide_bytes = (widest > heads ? widest : heads) / PART * group_bytes(WIDE4, PART);
    e->wide = take((size_t)(e->wide_bytes * m->threads));
    e->attention = take(sizeof *e->attention * (size_t)m->threads);
    e->threads = pool_open(m->threads);
    if (e->wide && e->attention && e->threads) return e;
    nubes_close(e);
    return NULL;
}

void nubes_close(engine *e) {
    if (!e) return;
    pool_close(e->threads);
    release(e);
    free(e->wide);
    free(e->attention);
    free(e);
}

int nubes_run(engine *e, const batch *b) {
    if (reserve(e, b->rows > b->wanted ? b->rows : b->wanted)) return -1;
    if (b->last > b->first && !b->project) tile_rows(e, b);
    e->b_now = b;
    e->by_rows = b->rows >= BLOCK * e->m.threads;
    return pool_run(e->threads, run, e);
}

const char *nubes_vectors(void) { return NUBES_VECTORS; }
