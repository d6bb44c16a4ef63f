"""The driver's side of virtio: a device over vhost-user, and its virtqueues.

Owns the drivers' view of a device (interface), bringing a device up (device), its messages
(front_end), and its queues (queue, on ring). Must not know the purpose of a device; fs and net do.
"""
