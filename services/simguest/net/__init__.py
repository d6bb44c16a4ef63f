"""What the guest does with a virtio-net device: Ethernet frames, and a network stack to send them.

Owns the driver (driver), the guest's network namespace (namespace), and the TAP interface that
joins the two (tap). Must not know virtqueues below `virtio.interface`, how buffers are mapped, or
what programs send.
"""
