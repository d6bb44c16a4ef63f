/*
 * The processes that mini_init makes.
 */
#ifndef MINI_INIT_PROCESSES_H
#define MINI_INIT_PROCESSES_H

#include <sys/types.h>

/* Like fork; the child has all signals as a new program expects them. */
pid_t process_fork(void);

#endif
