/*
 * What mini_init says to people: lines in the kernel's log.
 */
#ifndef MINI_INIT_LOG_H
#define MINI_INIT_LOG_H

/* Write one line, at most 400 bytes. */
void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

#endif
