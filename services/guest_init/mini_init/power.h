/*
 * The end of the guest.
 */
#ifndef MINI_INIT_POWER_H
#define MINI_INIT_POWER_H

/* End every process, unmount everything, and power off. */
_Noreturn void power_off(void);

#endif
