#include "pool.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <unistd.h>

enum { SPINS = 1500 }; /* some 50 microseconds: longer than a phase's imbalance, shorter than anyone would notice */

struct pool {
    int threads;
    pid_t owner; /* whose threads these are; 0: nobody's yet */
    pthread_t *handles;
    pthread_mutex_t lock;
    pthread_cond_t changed;
    atomic_uint sleepers, arrived, passed, jobs;
    void (*run)(void *, int);
    void *argument;
};

typedef struct {
    pool *p;
    int index;
} seat;

static void relax(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("yield");
#endif
}

/* Wait until `*counter` is no longer `old`: spin a little, then sleep. */
static void await(pool *p, atomic_uint *counter, unsigned old) {
    for (int i = 0; i < SPINS; i++) {
        if (atomic_load_explicit(counter, memory_order_acquire) != old) return;
        relax();
    }
    pthread_mutex_lock(&p->lock);
    atomic_fetch_add(&p->sleepers, 1);
    while (atomic_load(counter) == old) pthread_cond_wait(&p->changed, &p->lock);
    atomic_fetch_sub(&p->sleepers, 1);
    pthread_mutex_unlock(&p->lock);
}

static void advance(pool *p, atomic_uint *counter) {
    atomic_fetch_add(counter, 1);
    if (atomic_load(&p->sleepers)) {
        pthread_mutex_lock(&p->lock);
        pthread_cond_broadcast(&p->changed);
        pthread_mutex_unlock(&p->lock);
    }
}

void pool_barrier(pool *p) {
    if (p->threads == 1) return;
    const unsigned round = atomic_load(&p->passed);
    if (atomic_fetch_add(&p->arrived, 1) + 1 == (unsigned)p->threads) {
        atomic_store(&p->arrived, 0);
        advance(p, &p->passed);
    } else {
        await(p, &p->passed, round);
    }
}

static void *work(void *argument) {
    const seat mine = *(seat *)argument;
    free(argument);
    pool *p = mine.p;
    for (unsigned seen = 0;; seen++) {
        await(p, &p->jobs, seen);
        if (!p->run) return NULL;
        p->run(p->argument, mine.index);
        pool_barrier(p);
    }
}

static int start(pool *p) {
    pthread_mutex_init(&p->lock, NULL);
    pthread_cond_init(&p->changed, NULL);
    atomic_store(&p->sleepers, 0);
    atomic_store(&p->arrived, 0);
    atomic_store(&p->passed, 0);
    atomic_store(&p->jobs, 0);
    p->owner = getpid();
    for (int i = 1; i < p->threads; i++) {
        seat *mine = malloc(sizeof *mine);
        if (mine) *mine = (seat){p, i};
        if (!mine || pthread_create(&p->handles[i], NULL, work, mine)) {
            free(mine);
            p->threads = i; /* those that did start must be told to stop */
            return -1;
        }
    }
    return 0;
}

static void stop(pool *p) {
    p->run = NULL;
    advance(p, &p->jobs);
    for (int i = 1; i < p->threads; i++) pthread_join(p->handles[i], NULL);
    p->owner = 0;
}

pool *pool_open(int threads) {
    pool *p = calloc(1, sizeof *p);
    if (!p) return NULL;
    p->threads = threads;
    p->handles = calloc((size_t)threads, sizeof *p->handles);
    if (p->handles) return p;
    free(p);
    return NULL;
}

void pool_close(pool *p) {
    if (!p) return;
    if (p->owner == getpid() && p->threads > 1) stop(p);
    free(p->handles);
    free(p);
}

int pool_run(pool *p, void (*run)(void *, int), void *argument) {
    if (p->threads > 1 && p->owner != getpid()) {
        const int wanted = p->threads;
        if (start(p)) {
            stop(p);
            p->threads = wanted;
            return -1;
        }
    }
    p->run = run;
    p->argument = argument;
    if (p->threads > 1) advance(p, &p->jobs);
    run(argument, 0);
    pool_barrier(p);
    return 0;
}
