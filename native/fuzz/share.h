/*
 * A share to fuzz: a small tree on a tmpfs that only this process can see.
 *
 * Everything else that is mounted is read-only for this process but the directory that it was
 * started in, where libFuzzer writes. Needs root. Must not know what is fuzzed.
 */
#ifndef PORTHOLE_FUZZ_SHARE_H
#define PORTHOLE_FUZZ_SHARE_H

#include "../mount.h"

/* Call once, first: makes the mount namespace and the tmpfs. */
void share_mount(void);
/* The tree as it is at first, instead of what has become of it: files a (also called hard), b and
 * suid, directories dir and full, symlinks up and abs that lead out, and a FIFO. */
void share_lay_out(void);
/* An O_PATH descriptor of it. */
int share_fd(void);
/* What lies beside the share is as it was. */
void share_check_outside(void);
/* As many descriptors are open as before share_lay_out. */
void share_check_descriptors(void);
/* Limits so low that all that happens at limits happens soon. From any thread. */
struct ph_mount *share_open_at(uint64_t root_id, const struct ph_rules *rules, int may_switch);
/* The only share of a device, laid out anew. */
struct ph_mount *share_open(const struct ph_rules *rules, int may_switch);

#endif
