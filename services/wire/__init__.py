"""Floor 0: everything that crosses the VM boundary, as layouts and constants.

Owns the virtio ring, virtio-fs and FUSE, virtio-net and vhost-user as they are on the wire. The two
sides of each give it its meaning; a module here must not know them, nor another module here.
"""
