/* Threads that run one function together, with barriers between its phases. */
#ifndef NUBES_POOL_H
#define NUBES_POOL_H

typedef struct pool pool;

/* No thread starts before the first `pool_run`, and a forked child starts its own. NULL: out of memory. */
pool *pool_open(int threads);
void pool_close(pool *p);

/* `run(argument, i)` on thread i of `threads`, at the same time; the caller is thread 0. Returns 0, or -1 if threads
 * cannot be made. */
int pool_run(pool *p, void (*run)(void *, int), void *argument);

/* Within `run`: nobody goes on before all are here. */
void pool_barrier(pool *p);

#endif
