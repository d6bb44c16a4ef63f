"""The account of one device: its counters, its bounds, and the episodes in which one is used up.

`counters` declares every counter, once, with unit and description: metrics and answers are made
from that. `bounds` is bounded resources. `meter` holds both for one device. Must not know what a
counter or a resource means, or how either leaves the process.
"""

from services.devicehost.accounting.bounds import Bound, Bounds, Usage
from services.devicehost.accounting.counters import COUNTERS, Counters, Meaning, QueueCounters
from services.devicehost.accounting.meter import DeviceMeter

__all__ = [
    "COUNTERS",
    "Bound",
    "Bounds",
    "Counters",
    "DeviceMeter",
    "Meaning",
    "QueueCounters",
    "Usage",
]
