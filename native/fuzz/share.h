/*
 * A share to fuzz: a small tree on a tmpfs that only this process can see.
 *
 * All other mounts become read-only for this process, except the directory that it was started in,
 * where libFuzzer writes. Needs root. Must not know what is fuzzed.
 */
#ifndef PORTHOLE_FUZZ_SHARE_H
#define PORTHOLE_FUZZ_SHARE_H

#include "../mount.h"

/* Call once, first: makes the mount namespace and the tmpfs. */
void share_mount(void);
/* Make the tree anew: files a (also called hard), b and suid, directories dir and full, symlinks up
 * and abs that lead out, and a FIFO. */
void share_lay_out(void);
/* Returns an O_PATH descriptor of the share's directory. */
int share_fd(void);
/* Check that what lies beside the share is as it was. */
void share_check_outside(void);
/* Check that as many descriptors are open as before share_lay_out. */
void share_check_descriptors(void);
/* Mount the share, with limits so low that they are soon reached. From any thread. */
struct ph_mount *share_open_at(uint64_t root_id, const struct ph_rules *rules, int may_switch);
/* Make the tree anew and mount it, as the only share of a device. */
struct ph_mount *share_open(const struct ph_rules *rules, int may_switch);

#endif
