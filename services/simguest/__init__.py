"""The user-space guest: a VM's memory, boot and drivers in one process, without a hypervisor.

Owns the guest's life (guest), its kernel's boot (kernel), guest init as its process 1 (guest_init)
and its gRPC edge (servicer). Below them are memory, virtio, fs, net and workload. It meets the
other services over gRPC (Machine, Workload), vhost-user sockets and the files that its kernel
publishes; it must not import them.
"""
