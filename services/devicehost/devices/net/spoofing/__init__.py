"""Under which addresses a guest sends: those of its adapter, if that is asked for."""

from services.devicehost.devices.net.spoofing.source import START_BYTES, Source

__all__ = ["START_BYTES", "Source"]
