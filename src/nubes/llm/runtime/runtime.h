/* A Llama-family decoder on CPU. The structures are mirrored, field by field, in native.py. */
#ifndef NUBES_RUNTIME_H
#define NUBES_RUNTIME_H

#include "kernels.h"
#include "lora.h"

enum { QKV, OUT, GATE_UP, DOWN, PER_LAYER };

typedef struct {
    int32_t layers, hidden, heads, kv_heads, head_dim, ffn, vocab;
    int32_t block_size, byte_kv, threads;
    float eps, unused;
    const matrix *matrices; /* PER_LAYER for each layer, then embedding and head (which may be the same) */
    const float *norms;     /* [2 * layers + 1][hidden] */
    const float *rope;      /* [positions][head_dim]: cosines, then sines */
    char *kv;
} model;

/* What to do in one go: whatever has a pointer. `tokens`: fill x. Layers first ... last - 1, in place; with `project`,
   only write their keys and values. `outputs`: rows of x whose logits are wanted. */
typedef struct {
    int32_t rows, first, last, project, wanted, unused;
    const int32_t *tokens;
    float *x;    /* [rows][hidden] */
    float *keep; /* NULL, or [layers][rows][hidden]: each layer's input */
    const int32_t *positions, *slots, *visible, *sequence, *tables, *table_start;
    const uint64_t *extra; /* or NULL */
    const int32_t *outputs;
    float *logits; /* [wanted][vocab] */
    const lora *lora; /* NULL: no row has an adapter */
} batch;

typedef struct engine engine;

engine *nubes_open(const model *m);
void nubes_close(engine *e);
/* 0, or -1: out of memory or threads. */
int nubes_run(engine *e, const batch *b);
const char *nubes_vectors(void);
int nubes_pack(int kind, uint8_t *packed, int inputs, int size, int column, int step, int source_kind,
               const void *source, int rows);
/* Best of some runs: bytes (what = 0), float32 operations (1) or byte operations (2) per second. */
double nubes_measure(int what, int threads, const uint8_t *memory, long bytes);

#endif
