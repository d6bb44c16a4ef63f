"""Guest memory: how a device reaches the bytes of its guest, and only those.

One interface, GuestMemory, with two kinds behind it: ApertureMemory maps exactly the pool, once;
WindowMemory maps guest buffers on demand, under a quota. Both pin rings at queue setup. Must not
know queues, devices or vhost-user.
"""

from services.devicehost.memory.aperture import ApertureMemory
from services.devicehost.memory.counters import CounterValues, DeviceCounters, QueueCounters
from services.devicehost.memory.guest import GuestMemory, Lease, PinnedRing, TranslationError
from services.devicehost.memory.regions import Region, RegionTable
from services.devicehost.memory.windows import WindowMemory, WindowQuota

__all__ = [
    "ApertureMemory",
    "CounterValues",
    "DeviceCounters",
    "GuestMemory",
    "Lease",
    "PinnedRing",
    "QueueCounters",
    "Region",
    "RegionTable",
    "TranslationError",
    "WindowMemory",
    "WindowQuota",
]
