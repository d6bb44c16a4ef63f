#include "mutator.h"

#ifdef MUTATING
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

enum { MOST_TARGETS = 16 };

static pthread_barrier_t together;
static atomic_bool mutating;
static struct target targets[MOST_TARGETS];
static size_t target_count;
static uint64_t seed;

/* Write words that are likely to be something else in every place. */
static void mutate(void)
{
    static const uint64_t WORDS[] = {0,  1,      2,      4,      7,        16,
                                     64, 0x1000, 0x2000, 0xffff, 1u << 20, ~0ull};
    uint64_t random = seed | 1;

    while (atomic_load_explicit(&mutating, memory_order_relaxed)) {
        const struct target *target;
        uint8_t before[8];
        size_t at, length;

        random = random * 6364136223846793005u + 1442695040888963407u;
        target = &targets[(random >> 33) % target_count];
        length = (size_t)2 << (random >> 40) % 3;
        if (target->size < length)
            continue;
        at = (random >> 20) % (target->size - length + 1) / length * length;
        memcpy(before, target->start + at, length);
        memcpy(target->start + at, &WORDS[(random >> 44) % 12], length);
        __asm__ volatile("" ::: "memory"); /* it is read by others */
        /* Undo most of it: the device soon skips a chain that stays broken. */
        if ((random >> 50) % 64)
            memcpy(target->start + at, before, length);
    }
}

static void *run(void *unused)
{
    for (;;) {
        pthread_barrier_wait(&together);
        mutate();
        pthread_barrier_wait(&together);
    }
    return unused;
}

void mutator_begin(const struct target *chosen, size_t count, uint64_t first)
{
    static pthread_t thread;

    if (!thread) {
        pthread_barrier_init(&together, NULL, 2);
        HOLDS(!pthread_create(&thread, NULL, run, NULL));
    }
    HOLDS(count <= MOST_TARGETS);
    memcpy(targets, chosen, count * sizeof(*chosen));
    target_count = count;
    seed = first;
    atomic_store(&mutating, true);
    pthread_barrier_wait(&together);
}

void mutator_end(void)
{
    atomic_store(&mutating, false);
    pthread_barrier_wait(&together);
}
#endif
