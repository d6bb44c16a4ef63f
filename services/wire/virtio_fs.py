"""The virtio-fs device: numbers and the configuration space (virtio 1.2, section 5.11).

Owns the layout only. Must not know FUSE, which is services.wire.fuse.
"""

from __future__ import annotations

from struct import Struct
from typing import Final

VIRTIO_ID_FS: Final = 26
"""Device id (section 5)."""
TAG_BYTES: Final = 36
"""Size of the tag: UTF-8, padded with NUL, not terminated when it fills the field."""
HIPRIO_QUEUE: Final = 0
"""Queue of FORGET, BATCH_FORGET and INTERRUPT; request queues follow it (section 5.11.2)."""
CONFIG: Final = Struct("<36sI")
"""struct virtio_fs_config without notify_buf_size: tag, num_request_queues."""
