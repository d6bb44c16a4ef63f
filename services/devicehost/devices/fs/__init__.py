"""The virtio-fs device: one directory of the host, served over FUSE.

device > session > operations > mount > nodes, handles, directory, attributes, credentials >
request, descriptors, syscalls, errors. Only device.py knows queues; everything else works on plain
buffers.
"""

from services.devicehost.devices.fs.device import FsDevice

__all__ = ["FsDevice"]
