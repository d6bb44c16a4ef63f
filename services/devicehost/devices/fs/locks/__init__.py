"""Locks of a guest on files of the host, seen by host processes, other guests and other devices.

How it is done:

- A guest's POSIX lock belongs to a lock owner (a process of the guest) and a node. A POSIX lock of
  the host would belong to this whole process. So each pair of node and owner gets an open file
  description of its own, and the lock becomes an open-file-description lock of it (F_OFD_SETLK),
  which conflicts with the POSIX locks of host processes as well (`owners`).
- A guest's flock lock belongs to an open file, on the host as in the guest: to the handle's own
  description (`host_locks`).
- A lock that is free is set at once. If it is not free and the guest wants to wait, a thread waits
  in the kernel, first come, first served (`waits`); the request's chain is kept by its queue and
  answered later (virtio/deferral.py). So a wait never holds a queue up. The waits of one mount are
  bounded in number, and so are those of one queue.
- A wait ends with the lock, or with an errno: EINTR after INTERRUPT; ENOTCONN after DESTROY; ESTALE
  when its share was removed; ENOLCK when its queue stops (device reset or removed, front-end gone,
  guest paused), because EINTR without a signal would confuse Linux. A signal wakes the thread up
  (`wake`).

- A wait that would close a circle of the guest's lock owners is refused with EDEADLK (`deadlocks`);
  the kernel does not look for circles of OFD locks.

Two things differ from locks within one kernel. A circle that leads through a host process or
another guest is not detected. And Linux' own virtio-fs driver sends no INTERRUPT
(fs/fuse/virtio_fs.c, virtio_fs_send_interrupt, as of 6.18), so a process that waits there cannot be
killed before it gets its lock.
"""
