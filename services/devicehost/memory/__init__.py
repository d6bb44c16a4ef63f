"""Guest memory: how a device reaches the bytes of its guest, and only those.

`access` has the choice between three ways and all that follows from it; `guest` the one interface,
GuestMemory, with three kinds behind it. ApertureMemory maps exactly the pool, once; WindowMemory
maps guest buffers on demand, under a quota; WholeMemory maps everything, once, for a device that is
not to be confined. All pin rings at queue setup. `loss` notices pages that go away under a mapping.
Must not know queues, devices or vhost-user.
"""

from services.devicehost.memory.access import Access, Aperture, Whole, Windows, confined
from services.devicehost.memory.aperture import ApertureMemory
from services.devicehost.memory.guest import (
    GuestMemory,
    Lease,
    PinnedPart,
    Span,
    TranslationError,
)
from services.devicehost.memory.mapping import OwnRisk
from services.devicehost.memory.regions import Region, RegionTable
from services.devicehost.memory.whole import WholeMemory
from services.devicehost.memory.windows import WindowMemory, WindowQuota

__all__ = [
    "Access",
    "Aperture",
    "ApertureMemory",
    "GuestMemory",
    "Lease",
    "OwnRisk",
    "PinnedPart",
    "Region",
    "RegionTable",
    "Span",
    "TranslationError",
    "Whole",
    "WholeMemory",
    "WindowMemory",
    "WindowQuota",
    "Windows",
    "confined",
]
