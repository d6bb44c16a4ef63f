"""The store: one SQLite file with all that was received, bounded by age and by bytes.

Owns the file, its tables, one thread that writes, and connections that only read. A batch is one
transaction in write-ahead mode: what was acknowledged survives the end of the process, also by
SIGKILL. Must not know OTLP, rules or HTTP.
"""

from services.dashboard.store.file import Limits
from services.dashboard.store.listing import Filters, Page
from services.dashboard.store.reader import Reader, StoredSpan, StoredVm
from services.dashboard.store.writer import Kept, Writer

__all__ = [
    "Filters",
    "Kept",
    "Limits",
    "Page",
    "Reader",
    "StoredSpan",
    "StoredVm",
    "Writer",
]
