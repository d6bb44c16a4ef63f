"""Locks of a guest on files of the host, seen by host processes, other guests and other devices.

How it is done:

- A guest's POSIX lock belongs to a lock owner (a process of the guest) and a node. The host's would
  belong to this whole process. So each pair of node and owner gets an open file description of its
  own, and the lock becomes an open-file-description lock of it (F_OFD_SETLK), which conflicts with
  the POSIX locks of host processes as well (`owners`).
- A guest's flock lock belongs to an open file, on the host as in the guest: to the handle's own
  description (`holds`).
- A lock that is free is set at once. For one that is not, and that the guest wants to wait for, a
  thread waits in the kernel, first come, first served (`waits`); the request's chain is kept by its
  queue and answered later (virtio/deferral.py). So a wait never holds a queue up. Waits of one
  guest are bounded in number, and so are those of one queue.
- A wait ends by the lock; by INTERRUPT, with EINTR; when its queue stops (device reset or removed,
  front-end gone, guest paused), with ENOLCK, since EINTR without a signal would confuse Linux; by
  DESTROY, with ENOTCONN. The thread is woken up by a signal (`wake`).

What differs from locks within one kernel: waiting for each other in a circle is not found out
(EDEADLK), because OFD locks know no such thing. And Linux' own virtio-fs driver sends no INTERRUPT
(fs/fuse/virtio_fs.c, virtio_fs_send_interrupt, as of 6.18): there a process that waits cannot be
killed before it gets its lock.
"""
