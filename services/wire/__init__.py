"""Floor 0: what crosses the VM boundary, as layouts and constants.

Owns the virtio ring, virtio-fs and FUSE, virtio-net and vhost-user as they are on the wire. Must
not know who sends or what it means to a device.
"""
