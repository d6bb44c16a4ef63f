"""The channel to mini_init, process 1 of a Linux guest, over the socket of a virtio-serial port.

The guest is not trusted: what it sends is bounded, and an answer that nobody waits for is dropped.
"""
