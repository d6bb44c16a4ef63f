"""Virtio-net in the guest: Ethernet frames, and a network stack that sends them.

Owns the driver (driver), the guest's network namespace (namespace), and the TAP interface that
joins the two (tap). Must not know virtqueues below `virtio.interface`, how buffers are mapped, or
the contents of frames.
"""
