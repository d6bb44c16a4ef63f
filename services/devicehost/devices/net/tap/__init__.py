"""The TAP interface as a back end."""

from services.devicehost.devices.net.tap.interface import Tap, TapQueue

__all__ = ["Tap", "TapQueue"]
