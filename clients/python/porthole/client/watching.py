"""A watch of one VM across several streams of WatchVm.

Owns where a broken stream is resumed, and what the reader gets of it. Does no I/O.
"""

from __future__ import annotations

from porthole.vmowner.v1 import vm_owner_pb2 as pb


class Watch:
    """The place in the events of a VM that a reader has come to.

    Args:
        vm_id: Id of the VM.
        after_sequence: Number of the last message that the reader knows; 0: none.

    Attributes:
        heard: Whether the present stream has delivered a message.
    """

    def __init__(self, vm_id: str, after_sequence: int = 0) -> None:
        self._vm_id = vm_id
        self._after_sequence = after_sequence
        self._streams = 0
        self._in_snapshot = True
        self.heard = False

    def begin_stream(self) -> pb.WatchVmRequest:
        """Return the request of the next stream."""
        self._streams += 1
        self._in_snapshot = True
        self.heard = False
        return pb.WatchVmRequest(vm_id=self._vm_id, after_sequence=self._after_sequence)

    def is_new(self, message: pb.WatchVmResponse) -> bool:
        """Take a message; return whether the reader gets it.

        It gets all but the end of a snapshot that a resumed stream has not sent. When the owner no
        longer has the events in between, the reader gets the new snapshot, and its end.
        """
        self.heard = True
        if message.HasField("snapshot_end"):
            self._in_snapshot = False
        # A part of a snapshot is nothing to go on after, although it has the number of the whole.
        if not self._in_snapshot:
            self._after_sequence = message.sequence
        resumed = message.HasField("snapshot_end") and message.snapshot_end.resumed
        return not (resumed and self._streams > 1)
