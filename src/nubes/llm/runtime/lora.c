#include "lora.h"

#include "pool.h"
#include "vec.h"

enum { TILE = 4 }; /* rows of a tile */

INLINE vf value(const char *p, long at, int is_half) { return is_half ? load_half((const half *)p + at) : load((const float *)p + at); }

static const char *page(const lora *l, const segment *s, int layer, int j) {
    const int p = layer * s->rank + j;
    return l->pool + s->blocks[p / s->per_block] * l->block_bytes + (long)(p % s->per_block) * s->page * (l->half ? 2 : 4);
}

/* `ranks` of A against `rows` rows: a vector along k for each pair, summed up at the end. */
INLINE void dots(const int rows, const int ranks, const int is_half, const char *const *a, const float *x, int k, float *to, long width) {
    vf acc[TILE][8];
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < ranks; j++) acc[r][j] = splat(0);
    for (int i = 0; i < k; i += LANES) {
        vf in[TILE];
        for (int r = 0; r < rows; r++) in[r] = load(x + (long)r * k + i);
        for (int j = 0; j < ranks; j++) {
            const vf w = value(a[j], i, is_half);
            for (int r = 0; r < rows; r++) acc[r][j] = fma_(in[r], w, acc[r][j]);
        }
    }
    for (int r = 0; r < rows; r++)
        for (int j = 0; j < ranks; j++) to[r * width + j] = sum_(acc[r][j]);
}

INLINE void shrink_rows(const int rows, const int is_half, const char *const *a, int ranks, const float *x, int k, float *to, long width) {
    int j = 0;
    if (rows == 1)
        for (; j + 8 <= ranks; j += 8) dots(rows, 8, is_half, a + j, x, k, to + j, width);
    for (; j + 4 <= ranks; j += 4) dots(rows, 4, is_half, a + j, x, k, to + j, width);
    for (; j < ranks; j++) dots(rows, 1, is_half, a + j, x, k, to + j, width);
}

INLINE void shrink(const int is_half, const lora *l, int layer, int first, int count, const float *x, int k, int begin, int end) {
    const char *a[MAX_RANK];
    for (const segment *s = l->segment; s < l->segment + l->segments; s++) {
        const int top = begin > s->first ? begin - s->first : 0, bottom = end - s->first < s->rows ? end - s->first : s->rows;
        if (top >= bottom) continue;
        for (int m = 0; m < count; m++) {
            if (s->a[first + m] < 0) continue;
            for (int j = 0; j < s->rank; j++) a[j] = page(l, s, layer, j) + (long)s->a[first + m] * (is_half ? 2 : 4);
            for (int r = top; r < bottom; r += TILE) {
                const long row = s->first + r;
                const float *in = x + row * k;
                float *to = l->inner + row * l->width + m * s->rank;
                switch (bottom - r) {
                case 1: shrink_rows(1, is_half, a, s->rank, in, k, to, l->width); break;
                case 2: shrink_rows(2, is_half, a, s->rank, in, k, to, l->width); break;
                case 3: shrink_rows(3, is_half, a, s->rank, in, k, to, l->width); break;
                default: shrink_rows(4, is_half, a, s->rank, in, k, to, l->width);
                }
            }
        }
    }
}

/* `vectors` vectors of columns of B added to `rows` rows. */
INLINE void sums(const int rows, const int vectors, const int is_half, const char *const *b, long column, const float (*inner)[MAX_RANK], int rank,
                 float *y, long stride) {
    vf acc[TILE][8];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) acc[r][v] = load(y + r * stride + v * LANES);
    for (int j = 0; j < rank; j++)
        for (int v = 0; v < vectors; v++) {
            const vf w = value(b[j], column + v * LANES, is_half);
            for (int r = 0; r < rows; r++) acc[r][v] = fma_(splat(inner[r][j]), w, acc[r][v]);
        }
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) store(y + r * stride + v * LANES, acc[r][v]);
}

INLINE void expand_rows(const int rows, const int is_half, const char *const *b, int from, int to, const float (*inner)[MAX_RANK], int rank, float *y,
                        long stride) {
    int c = from;
    if (rows == 1)
        for (; c + 8 * LANES <= to; c += 8 * LANES) sums(rows, 8, is_half, b, c, inner, rank, y + c, stride);
    for (; c + 4 * LANES <= to; c += 4 * LANES) sums(rows, 4, is_half, b, c, inner, rank, y + c, stride);
    for (; c < to; c += 2 * LANES) sums(rows, 2, is_half, b, c, inner, rank, y + c, stride);
}

INLINE void expand(const int is_half, const lora *l, int layer, int first, int count, int begin, int end, int from, int to, float *y, long stride) {
    const char *b[MAX_RANK];
    float inner[TILE][MAX_RANK];
    for (const segment *s = l->segment; s < l->segment + l->segments; s++) {
        const int top = begin > s->first ? begin - s->first : 0, bottom = end - s->first < s->rows ? end - s->first : s->rows;
        for (int m = 0, start = 0; m < count && top < bottom; start += l->outputs[first + m++]) {
            const int left = from > start ? from - start : 0, most = l->outputs[first + m], right = to - start < most ? to - start : most;
            if (s->b[first + m] < 0 || left >= right) continue;
            for (int j = 0; j < s->rank; j++) b[j] = page(l, s, layer, j) + (long)s->b[first + m] * (is_half ? 2 : 4);
            for (int r = top; r < bottom; r += TILE) {
                const int rows = bottom - r < TILE ? bottom - r : TILE;
                for (int i = 0; i < rows; i++)
                    for (int j = 0; j < s->rank; j++) inner[i][j] = s->scale * l->inner[(s->first + r + i) * (long)l->width + m * s->rank + j];
                float *at = y + (s->first + r) * stride + start;
                switch (rows) {
                case 1: expand_rows(1, is_half, b, left, right, (const float (*)[MAX_RANK])inner, s->rank, at, stride); break;
                case 2: expand_rows(2, is_half, b, left, right, (const float (*)[MAX_RANK])inner, s->rank, at, stride); break;
                case 3: expand_rows(3, is_half, b, left, right, (const float (*)[MAX_RANK])inner, s->rank, at, stride); break;
                default: expand_rows(4, is_half, b, left, right, (const float (*)[MAX_RANK])inner, s->rank, at, stride);
                }
            }
        }
    }
}

void lora_shrink(const lora *l, int layer, int first, int count, const float *x, int k, int begin, int end) {
    if (l->half) shrink(1, l, layer, first, count, x, k, begin, end);
    else shrink(0, l, layer, first, count, x, k, begin, end);
}

void lora_expand(const lora *l, int layer, int first, int count, int begin, int end, int from, int to, float *y, long stride) {
    if (l->half) expand(1, l, layer, first, count, begin, end, from, to, y, stride);
    else expand(0, l, layer, first, count, begin, end, from, to, y, stride);
}

/* One product by itself: y += scale * x A^T B^T for every segment. */
typedef struct {
    const lora *l;
    int layer, matrix, k;
    const float *x;
    float *y;
} product;

static void one_product(void *argument, int t) {
    const product *p = argument;
    const int columns = p->l->outputs[p->matrix], begin = p->l->bounds[t], end = p->l->bounds[t + 1];
    lora_shrink(p->l, p->layer, p->matrix, 1, p->x, p->k, begin, end);
    lora_expand(p->l, p->layer, p->matrix, 1, begin, end, 0, columns, p->y, columns);
}

int nubes_lora(pool *threads, const lora *l, int layer, int matrix, int k, const float *x, float *y) {
    product p = {l, layer, matrix, k, x, y};
    return pool_run(threads, one_product, &p);
}
