/* The paged KV cache: where what lies, and how it gets there.

   A block holds, layer by layer, of floats: keys [kv_heads][head_dim][block_size] and values
   [kv_heads][block_size][head_dim]. Of bytes, each token's of a head with a scale of its own: keys
   [kv_heads][block_size / 16][head_dim / 4][16][4], + 128, values [kv_heads][block_size / 2][head_dim][2], then as floats
   the scales of keys and those of values [kv_heads][block_size]. Keys lie across, so that a vector of scores needs no sum
   over its lanes. slots.py knows the same. */
#ifndef NUBES_KV_H
#define NUBES_KV_H

#include "runtime.h"

enum { MAX_HEAD = 256, GROUP = 16 };

/* One sequence's KV of a layer and head: its table of blocks, and where block 0 would have it. */
typedef struct {
    const int32_t *blocks;
    const char *keys, *values, *key_scales, *value_scales;
    long block_bytes;
    int block_size, dim;
} kv_view;

static long head_bytes_kv(const model *m) { return (long)m->head_dim * m->block_size * (m->byte_kv ? 1 : 4); }
static long layer_bytes(const model *m) {
    return 2L * m->kv_heads * (head_bytes_kv(m) + (m->byte_kv ? 4L * m->block_size : 0));
}

/* One sequence's KV of a layer and head. */
static kv_view kv_of(const model *m, const batch *b, int sequence, int layer, int head) {
    const long each = head_bytes_kv(m), all = m->kv_heads * each;
    const char *keys = m->kv + layer * layer_bytes(m) + head * each;
    const char *scales = m->kv + layer * layer_bytes(m) + 2 * all + head * 4L * m->block_size;
    return (kv_view){b->tables + b->table_start[sequence],
                     keys,
                     keys + all,
                     scales,
                     scales + m->kv_heads * 4L * m->block_size,
                     m->layers * layer_bytes(m),
                     m->block_size,
                     m->head_dim};
}

/* Put a row's key and value of a head where they belong. */
INLINE void put(const kv_view *kv, int slot, const float *k, const float *v, const int in_bytes) {
    const int size = kv->block_size, dim = kv->dim, offset = slot % size;
    const long base = kv->blocks[slot / size] * kv->block_bytes;
    char *keys = (char *)kv->keys + base, *values = (char *)kv->values + base;
    if (!in_bytes) {
        for (int i = 0; i < dim; i++) ((float *)keys)[offset + i * size] = k[i];
        memcpy((float *)values + offset * dim, v, sizeof(float) * (size_t)dim);
        return;
    }
    int8_t bytes[MAX_HEAD];
    float low;
    int32_t bias;
    quantise(k, dim, dim, bytes, (float *)(kv->key_scales + base) + offset, &low, &bias);
    for (int i = 0; i < dim; i++) bytes[i] ^= -128;
    keys += offset / GROUP * GROUP * dim + offset % GROUP * 4;
    for (int i = 0; i < dim; i += 4) memcpy(keys + i * GROUP, bytes + i, 4);
    quantise(v, dim, dim, bytes, (float *)(kv->value_scales + base) + offset, &low, &bias);
    values += offset / 2 * 2 * dim + offset % 2;
    for (int i = 0; i < dim; i++) values[2 * i] = bytes[i];
}

#endif
