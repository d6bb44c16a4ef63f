"""What a Linux guest of the demonstration does, as a program: the host's Python runs it there.

Owns the program's words and the lines of JSON that it prints. It sees mounted directories and a
network of the guest's kernel; it must not know shares, gRPC or the host.

    hash DIRECTORY [EXCLUDED…]         one line for each file: path in hexadecimal, size, SHA-256
    copy SOURCE TARGET [EXCLUDED…]     directories, files, symbolic links, bytes
    ping ADDRESS COUNT TIMEOUT_S       sent, received, median of the round trips in seconds
    get URL TIMEOUT_S                  status, size, SHA-256
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import stat
import statistics
import struct
import sys
import time
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Final

from services.cli.demo.tree import Tree, copy_files, read_tree

if TYPE_CHECKING:
    from collections.abc import Iterator

_ECHO_REPLY: Final = 0
_ECHO_REQUEST: Final = 8
_IP_HEADER_WORDS: Final = 0x0F
"""Bits of the first byte of an IP header that have its length, in words of 4 bytes."""


def lines(words: list[str]) -> Iterator[list[object]]:
    """Do what the words say; yield the lines.

    Raises:
        ValueError: They say nothing that is known.
        OSError: It failed.
    """
    match words:
        case ["hash", directory, *excluded]:
            for path, digest in read_tree(Path(directory), excluded).files.items():
                yield [path.hex(), digest.size_bytes, digest.sha256]
        case ["copy", source, target, *excluded]:
            yield _copy(Path(source), Path(target), excluded)
        case ["ping", address, count, timeout_s]:
            yield _ping(address, int(count), float(timeout_s))
        case ["get", url, timeout_s]:
            # The demonstration's own server, on this machine's interface.
            with urllib.request.urlopen(url, timeout=float(timeout_s)) as answer:  # noqa: S310
                body = answer.read()
                yield [answer.status, len(body), hashlib.sha256(body).hexdigest()]
        case _:
            raise ValueError(f"{words} are not among the words of {__name__}")


def _copy(source: Path, target: Path, excluded: list[str]) -> list[object]:
    # What could not be copied, the host finds when it compares.
    with contextlib.suppress(shutil.Error):
        copy_files(Tree(source, tuple(excluded)), source, target)
    directories = files = links = size_bytes = 0
    for path in target.rglob("*"):
        status = path.lstat()
        directories += stat.S_ISDIR(status.st_mode)
        links += stat.S_ISLNK(status.st_mode)
        if stat.S_ISREG(status.st_mode):
            files += 1
            size_bytes += status.st_size
    return [directories, files, links, size_bytes]


def _ping(address: str, count: int, timeout_s: float) -> list[object]:
    times_s: list[float] = []
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_ICMP) as raw:
        for number in range(count):
            began_s = time.monotonic()
            identity = os.getpid() & 0xFFFF
            raw.sendto(_echo_request(identity, number), (address, 0))
            limit_s = began_s + timeout_s
            while (left_s := limit_s - time.monotonic()) > 0:
                raw.settimeout(left_s)
                try:
                    packet = raw.recv(2048)
                except TimeoutError:
                    break
                if _is_reply(packet, identity, number):
                    times_s.append(time.monotonic() - began_s)
                    break
    return [count, len(times_s), statistics.median(times_s) if times_s else 0.0]


def _echo_request(identity: int, number: int) -> bytes:
    parts = struct.pack("!4H", _ECHO_REQUEST << 8, 0, identity, number)
    total = sum(struct.unpack("!4H", parts))
    checksum = ~((total & 0xFFFF) + (total >> 16)) & 0xFFFF
    return struct.pack("!4H", _ECHO_REQUEST << 8, checksum, identity, number)


def _is_reply(packet: bytes, identity: int, number: int) -> bool:
    header = packet[(packet[0] & _IP_HEADER_WORDS) * 4 :][:8]
    if len(header) < 8:
        return False
    kind, _, _, its_identity, its_number = struct.unpack("!BBHHH", header)
    return (kind, its_identity, its_number) == (_ECHO_REPLY, identity, number)


if __name__ == "__main__":
    for line in lines(sys.argv[1:]):
        print(json.dumps(line))
