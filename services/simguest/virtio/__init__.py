"""The driver's side of virtio: a device over vhost-user, and its virtqueues.

Owns what drivers see of a device (interface), bringing one up (device), its messages (front_end),
and its queues (queue, on ring). Must not know what a device does; fs and net do.
"""
