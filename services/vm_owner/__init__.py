"""The VM owner: creates VMs, latches what their guests publish, and tells every device of it.

Owns configuration, sizing, the kernel command line, VMs, their devices, shares and networking, and
the machines that run guests. Protobuf stays in servicer.py and clients.py. Must not know guest
memory or virtqueues: those are between the guest and the device host.
"""
