"""Takes a fuzzer's input apart. Past the end it reads zeros, so every input is valid."""

from __future__ import annotations


class Reader:
    """The bytes of one input, from the first to the last."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def __bool__(self) -> bool:
        """Whether bytes are left."""
        return self._at < len(self._data)

    def bytes(self, count: int) -> bytes:
        part = self._data[self._at : self._at + count]
        self._at += count
        return part.ljust(count, b"\0")

    def number(self, size_bytes: int) -> int:
        return int.from_bytes(self.bytes(size_bytes), "little")
