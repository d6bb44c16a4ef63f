"""The virtio-fs device: one directory of the host, or an aggregate of several, served over FUSE.

device > session > operations > aggregate > mount > nodes, handles, directory, attributes,
credentials > request, descriptors, syscalls, errors. Only device.py knows queues; everything else
works on plain buffers.
"""

from services.devicehost.devices.fs.device import FsDevice

__all__ = ["FsDevice"]
