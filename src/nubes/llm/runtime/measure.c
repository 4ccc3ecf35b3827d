/* What this machine can do at most, in the inner loops of our own kernels. */
#include <stdlib.h>
#include <time.h>

#include "pool.h"
#include "runtime.h"

enum { READ, FLOATS, BYTES, INNER = 512, TIMES = 20000 };

typedef struct {
    int what, threads;
    const uint8_t *memory;
    long bytes;
    float sink[64];
} task;

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void work(void *argument, int thread) {
    task *w = argument;
    vf acc[ROWS][ACROSS], total = splat(0);
    if (w->what == READ) {
        const long share = w->bytes / w->threads / 256 * 256;
        const uint8_t *p = w->memory + thread * share;
        vi a = splat_i(0), b = a, c = a, d = a;
        for (long i = 0; i + 16 * LANES <= share; i += 16 * LANES) {
            a ^= load_i(p + i);
            b ^= load_i(p + i + 4 * LANES);
            c ^= load_i(p + i + 8 * LANES);
            d ^= load_i(p + i + 12 * LANES);
        }
        total = to_float(a ^ b ^ c ^ d);
    } else {
        const inputs in = {(float *)w->memory, (int8_t *)w->memory, (float *)w->memory, (float *)w->memory,
                           (int32_t *)w->memory};
        for (int i = 0; i < TIMES; i++) {
            if (w->what == FLOATS) multiply_f(ROWS, in.f, INNER, (const float *)w->memory, PANEL, INNER / 4, (soon){0}, acc);
            else multiply_q(ROWS, INT8, &in, 0, w->memory, INNER / 128, 128 / PART, (soon){0}, acc);
            for (int r = 0; r < ROWS; r++)
                for (int j = 0; j < ACROSS; j++) total += acc[r][j];
        }
    }
    w->sink[thread % 64] = sum_(total);
}

double nubes_measure(int what, int threads, const uint8_t *memory, long bytes) {
    task w = {what, threads, memory, bytes, {0}};
    const double amount =
        what == READ ? (double)bytes : 2.0 * ROWS * PANEL * TIMES * threads * (what == FLOATS ? INNER / 4 : INNER);
    double best = 0;
    pool *p = pool_open(threads);
    for (int i = 0; p && i < 12; i++) {
        const double start = now();
        if (pool_run(p, work, &w)) break;
        const double rate = amount / (now() - start);
        best = rate > best ? rate : best;
    }
    pool_close(p);
    return best;
}
