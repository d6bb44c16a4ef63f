"""Floor 2: the VM owner. It creates VMs, latches the pool of each, and gives it to every device.

Owns configuration, sizing, the kernel command line, VMs, their devices, shares and networking, and
the machines that run guests. It never touches guest memory and virtqueues, which only the guest and
the device host share.
"""
