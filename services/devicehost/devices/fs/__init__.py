"""The virtio-fs device: one directory of the host, or an aggregate of several, served over FUSE.

device > protocol, backend > aggregate > operations > mount > locks, share > host_files. Only device
knows queues; everything below works on plain buffers.
"""

from services.devicehost.devices.fs.device import FsDevice

__all__ = ["FsDevice"]
