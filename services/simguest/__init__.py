"""The user-space guest: RAM, bounce pool, published files, virtio drivers.

One process is one VM. It meets the others over gRPC (Machine, Workload), vhost-user sockets and the
files that its kernel publishes; it must not import them.
"""
