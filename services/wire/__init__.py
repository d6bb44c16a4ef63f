"""Floor 0: everything that crosses the VM boundary, as layouts and constants.

Owns the virtio ring, virtio-fs and FUSE, virtio-net and vhost-user as they are on the wire. The
meaning belongs to the two sides of each protocol. A module here must know neither a side nor
another module here.
"""
