#include "lost_memory.h"

#include <errno.h>
#include <signal.h>
#include <stdatomic.h>
#include <stddef.h>
#include <sys/mman.h>
#include <unistd.h>

#include "mutex.h"

/* The handler reads these without a mutex, on a thread that may hold it. */
struct watched {
    atomic_uintptr_t start; /* 0: not in use */
    atomic_size_t size_bytes;
    atomic_bool is_lost;
};

static struct watched table[PH_MAX_WATCHED];
static atomic_int high; /* those in use are below */
static struct ph_mutex table_mutex = {PTHREAD_MUTEX_INITIALIZER};
static int next_free[PH_MAX_WATCHED] PH_GUARDED_BY(table_mutex); /* 1 + a number; 0: the last */
static int first_free PH_GUARDED_BY(table_mutex);
static struct sigaction before;
static int wake_fd = -1;

/* Put zeros in the place of the mapping that has the address; false if there is none. */
static bool replace(uintptr_t address)
{
    for (int number = 0; number < atomic_load(&high); number++) {
        uintptr_t start = atomic_load(&table[number].start);
        size_t size_bytes = atomic_load(&table[number].size_bytes);
        uint64_t one = 1;
        ssize_t sent;

        if (!start || address < start || address - start >= size_bytes)
            continue;
        /* NOLINTNEXTLINE(performance-no-int-to-ptr): the address of a mapping */
        if (mmap((void *)start, size_bytes, PROT_READ | PROT_WRITE,
                 MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0) == MAP_FAILED)
            return false;
        atomic_store(&table[number].is_lost, true);
        sent = write(wake_fd, &one, sizeof(one));
        (void)sent; /* full: it is readable */
        return true;
    }
    return false;
}

/* The address is where a thread of this process touched memory, not what kill(2) has sent. */
static bool is_touch(const siginfo_t *info)
{
    return info->si_code > 0;
}

static void on_bus_error(int number, siginfo_t *info, void *context)
{
    int kept = errno;
    bool was_ours = is_touch(info) && replace((uintptr_t)info->si_addr);

    errno = kept;
    if (was_ours)
        return;
    if (before.sa_flags & SA_SIGINFO) {
        before.sa_sigaction(number, info, context);
    } else if (before.sa_handler != SIG_DFL && before.sa_handler != SIG_IGN) {
        before.sa_handler(number);
    } else {
        signal(number, SIG_DFL);
        raise(number); /* comes when this returns */
    }
}

bool ph_lost_install(int event_fd)
{
    struct sigaction action = {.sa_sigaction = on_bus_error, .sa_flags = SA_SIGINFO | SA_ONSTACK};

    wake_fd = event_fd;
    sigemptyset(&action.sa_mask);
    return !sigaction(SIGBUS, &action, &before);
}

int ph_lost_watch(void *start, uint64_t size_bytes)
{
    int number = -1;

    ph_mutex_take(&table_mutex);
    if (first_free) {
        number = first_free - 1;
        first_free = next_free[number];
    } else if (atomic_load(&high) < PH_MAX_WATCHED) {
        number = atomic_fetch_add(&high, 1);
    }
    ph_mutex_let_go(&table_mutex);
    if (number < 0)
        return -1;
    atomic_store(&table[number].is_lost, false);
    atomic_store(&table[number].size_bytes, size_bytes);
    atomic_store(&table[number].start, (uintptr_t)start);
    return number;
}

bool ph_lost_is(int number)
{
    return atomic_load(&table[number].is_lost);
}

bool ph_lost_unwatch(int number)
{
    bool was_lost = ph_lost_is(number);

    atomic_store(&table[number].start, 0);
    ph_mutex_take(&table_mutex);
    next_free[number] = first_free;
    first_free = number + 1;
    ph_mutex_let_go(&table_mutex);
    return was_lost;
}
