"""Frames on their way between a guest's rings and a back end, by Python or by the native loop."""

from services.devicehost.devices.net.frames.pair import Pair

__all__ = ["Pair"]
