"""Packs the initramfs of a Linux guest: mini_init, and the modules of a stock kernel beside it.

Owns the archive format, cpio "newc" (Documentation/driver-api/early-userspace/buffer-format.rst):
times, owners and order are fixed, so that the same files make the same bytes. A kernel unpacks
archives that follow each other, so the modules are an archive of their own.

    initramfs.py init <mini_init> <target>
    initramfs.py modules <root of a kernel package> <target>
"""

from __future__ import annotations

import lzma
import stat
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

INIT_LIMIT_BYTES: Final = 2 << 20
"""Largest initramfs without modules."""

MODULES: Final = (
    "virtio_pci",
    "virtio_console",
    "virtiofs",
    "virtio_net",
    "overlay",
    "af_packet",
)
"""What a guest of a stock kernel needs, without what these need themselves."""

_CONSOLE: Final = (5, 1)  # Documentation/admin-guide/devices.txt
_EMPTY_DIRECTORIES: Final = ("dev", "proc", "root", "run", "sys", "tmp")


@dataclass(frozen=True)
class Entry:
    """One file of an archive.

    Attributes:
        name: Its path, without a slash in front.
        mode: Kind and rights, as of stat.
        content: Of a regular file.
        device: Major and minor number of a device.
    """

    name: str
    mode: int
    content: bytes = b""
    device: tuple[int, int] = (0, 0)


def archive(entries: list[Entry]) -> bytes:
    """Write an archive of entries, parents before children, with its end."""
    parts = [_written(number, entry) for number, entry in enumerate(entries, 1)]
    return b"".join([*parts, _written(0, Entry("TRAILER!!!", 0))])


def init_entries(program: bytes) -> list[Entry]:
    """List what is in the initramfs of every guest."""
    directories = [Entry(name, stat.S_IFDIR | 0o755) for name in _EMPTY_DIRECTORIES]
    console = Entry("dev/console", stat.S_IFCHR | 0o600, device=_CONSOLE)
    return [*directories, console, Entry("init", stat.S_IFREG | 0o755, program)]


def module_entries(root: Path) -> list[Entry]:
    """List the modules of a kernel, and the order in which they are loaded."""
    files = {_name(path): path for path in root.rglob("*.ko*")}
    order: list[str] = []
    contents: dict[str, bytes] = {}
    for module in MODULES:
        _add(module, files, contents, order)
    listed = "".join(f"{name}.ko\n" for name in order)
    return [
        Entry("modules", stat.S_IFDIR | 0o755),
        *(Entry(f"modules/{name}.ko", stat.S_IFREG | 0o644, contents[name]) for name in order),
        Entry("modules/order", stat.S_IFREG | 0o644, listed.encode()),
    ]


def _add(name: str, files: dict[str, Path], contents: dict[str, bytes], order: list[str]) -> None:
    if name in contents or name not in files:  # one that is not there is built in
        return
    raw = files[name].read_bytes()
    contents[name] = lzma.decompress(raw) if files[name].suffix == ".xz" else raw
    for needed in _needed(contents[name]):
        _add(needed, files, contents, order)
    order.append(name)


def _needed(module: bytes) -> list[str]:
    # The section .modinfo has "depends=<name>,<name>", ended by a 0.
    _, _, after = module.partition(b"\0depends=")
    names = after.partition(b"\0")[0].decode("ascii").split(",")
    return [name.replace("-", "_") for name in names if name]


def _name(path: Path) -> str:
    return path.name.partition(".")[0].replace("-", "_")


def _written(number: int, entry: Entry) -> bytes:
    name = entry.name.encode() + b"\0"
    fields = (
        number,
        entry.mode,
        *(0, 0),  # owner
        1 if number else 0,  # links
        0,  # time
        len(entry.content),
        *(0, 0),  # of the file system
        *entry.device,
        len(name),
        0,  # checksum
    )
    header = b"070701" + b"".join(b"%08x" % field for field in fields)
    return _padded(header + name) + _padded(entry.content)


def _padded(data: bytes) -> bytes:
    return data + b"\0" * (-len(data) % 4)


def main(kind: str, source: str, target: str) -> None:
    """Write an archive."""
    if kind == "init":
        packed = archive(init_entries(Path(source).read_bytes()))
        if len(packed) > INIT_LIMIT_BYTES:
            sys.exit(f"{target} would have {len(packed)} bytes; at most {INIT_LIMIT_BYTES}")
    else:
        packed = archive(module_entries(Path(source)))
    path = Path(target)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(packed)


if __name__ == "__main__":
    main(*sys.argv[1:])
