/* LoRA: what adapters add to a product, for rows that lie in segments of one adapter each.

   An adapter lies in blocks of the KV pool, cut into pages: page `layer * rank + j` holds row j of every A and column j
   of every B of that layer, each in one piece; a block holds `per_block` pages. Values are of the KV's type. */
#ifndef NUBES_LORA_H
#define NUBES_LORA_H

#include <stdint.h>

enum { Q, K, V, O, ADAPTED }; /* the matrices that adapters may change */
enum { MAX_RANK = 512 };

typedef struct {
    int32_t first, rows, rank, per_block, page; /* page: its values */
    float scale;
    int32_t a[ADAPTED], b[ADAPTED]; /* where in a page; -1: that matrix is as it was */
    const int32_t *blocks;
} segment;

typedef struct {
    int32_t segments, width, half, outputs[ADAPTED], unused;
    int64_t block_bytes;
    const segment *segment;
    const char *pool;
    float *inner; /* [rows][width]: width is at least three times the largest rank */
    const int32_t *bounds; /* [threads + 1]: rows bounds[t] ... bounds[t + 1] - 1 are thread t's, each about as much work */
} lora;

/* inner = x A^T for rows `begin` ... `end - 1` and matrices `first` ... `first + count - 1`. `x` is [rows][k]. */
void lora_shrink(const lora *l, int layer, int first, int count, const float *x, int k, int begin, int end);

/* y += scale * inner B^T for these rows, in columns `from` ... `to - 1` (multiples of 32) of the matrices' outputs side by side. */
void lora_expand(const lora *l, int layer, int first, int count, int begin, int end, int from, int to, float *y, long stride);

#endif
