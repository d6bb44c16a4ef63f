"""How fast frames may go: the limits of an adapter, shared by its queues."""

from services.devicehost.devices.net.rates.limiter import Limiter, Limits

__all__ = ["Limiter", "Limits"]
