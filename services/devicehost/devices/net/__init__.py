"""The virtio-net device: Ethernet frames between a guest's queues and a TAP interface."""

from services.devicehost.devices.net.device import NetDevice

__all__ = ["NetDevice"]
