"""Virtio-fs in the guest: a FUSE client of its own, and a bridge for the host kernel's client.

Owns the client's session (driver), requests (operations, replies), whole files and directories
(streams) and paths (paths); and a device as a real mount point (bridge, mount). Must not know
virtqueues below `virtio.interface`, how buffers are mapped, or the purpose of the files.
"""
