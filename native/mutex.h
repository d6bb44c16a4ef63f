/*
 * Mutexes, with marks that say what each guards and which functions need it.
 *
 * make check refuses access without the mutex, a mutex that is taken twice, and one that is not let
 * go of on some path. Compilers do not see the marks. docs/architecture.md has the order in which
 * mutexes are taken.
 */
#ifndef PORTHOLE_MUTEX_H
#define PORTHOLE_MUTEX_H

#include <pthread.h>

#ifdef PORTHOLE_ANALYSIS
#define PH_MARK(...) __attribute__((__VA_ARGS__))
#else
#define PH_MARK(...)
#endif

#define PH_GUARDED_BY(mutex) PH_MARK(guarded_by(mutex))         /* a field */
#define PH_WITH(mutex) PH_MARK(requires_capability(mutex))      /* a function: it is held */
#define PH_WITHOUT(mutex) PH_MARK(locks_excluded(mutex))        /* it is not held */
#define PH_TAKES(mutex) PH_MARK(acquire_capability(mutex))      /* it is held afterwards */
#define PH_LETS_GO_OF(mutex) PH_MARK(release_capability(mutex)) /* it is not held any more */
/* A function: no other thread knows what it works on, not yet or no longer. */
#define PH_ALONE PH_MARK(no_thread_safety_analysis)

struct PH_MARK(capability("mutex")) ph_mutex {
    pthread_mutex_t native;
};

static inline void ph_mutex_init(struct ph_mutex *mutex)
{
    pthread_mutex_init(&mutex->native, NULL); /* cannot fail without attributes */
}

static inline void ph_mutex_destroy(struct ph_mutex *mutex)
{
    pthread_mutex_destroy(&mutex->native);
}

static inline void ph_mutex_take(struct ph_mutex *mutex) PH_TAKES(*mutex) PH_ALONE
{
    pthread_mutex_lock(&mutex->native);
}

static inline void ph_mutex_let_go(struct ph_mutex *mutex) PH_LETS_GO_OF(*mutex) PH_ALONE
{
    pthread_mutex_unlock(&mutex->native);
}

#endif
