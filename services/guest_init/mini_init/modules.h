/*
 * Modules of a stock kernel, which the image may bring along.
 */
#ifndef MINI_INIT_MODULES_H
#define MINI_INIT_MODULES_H

/* Load the modules that /modules/order lists, a name each line, if there is such a file. */
void modules_load(void);

#endif
