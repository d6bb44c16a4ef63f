"""Sizes as the kernel's header has them, and values that survive packing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from services.wire import fuse, virtio_fs

if TYPE_CHECKING:
    from struct import Struct

# sizeof() of include/uapi/linux/fuse.h 7.39; where a fuse_attr or fuse_statx follows, without it.
SIZES = {
    "IN_HEADER": 40,
    "OUT_HEADER": 16,
    "ATTR": 88,
    "ATTR_FLAGS": 4,
    "ENTRY_OUT": 128 - 88,
    "ATTR_OUT": 104 - 88,
    "FORGET_IN": 8,
    "BATCH_FORGET_IN": 8,
    "FORGET_ONE": 16,
    "GETATTR_IN": 16,
    "SETATTR_IN": 88,
    "MKNOD_IN": 16,
    "MKDIR_IN": 8,
    "RENAME_IN": 8,
    "RENAME2_IN": 16,
    "LINK_IN": 8,
    "OPEN_IN": 8,
    "OPEN_OUT": 16,
    "CREATE_IN": 16,
    "RELEASE_IN": 24,
    "FLUSH_IN": 24,
    "READ_IN": 40,
    "WRITE_IN": 40,
    "WRITE_OUT": 8,
    "STATFS_OUT": 80,
    "FSYNC_IN": 16,
    "SETXATTR_IN": 16,
    "SETXATTR_COMPAT_IN": 8,
    "GETXATTR_IN": 8,
    "GETXATTR_OUT": 8,
    "FILE_LOCK": 24,
    "LK_IN": 48,
    "LK_OUT": 24,
    "ACCESS_IN": 8,
    "INIT_IN": 64,
    "INIT_COMPAT_IN": 16,
    "INIT_OUT": 64,
    "INTERRUPT_IN": 8,
    "FALLOCATE_IN": 32,
    "DIRENT": 24,
    "LSEEK_IN": 24,
    "LSEEK_OUT": 8,
    "COPY_FILE_RANGE_IN": 56,
    "SYNCFS_IN": 8,
    "STATX_IN": 24,
    "STATX_OUT": 288 - 256,
    "SX_TIME": 16,
    "STATX": 256,
    "EXT_HEADER": 8,
}


@pytest.mark.parametrize(("name", "size"), SIZES.items())
def test_sizes(name: str, size: int) -> None:
    layout: Struct = getattr(fuse, name)
    assert layout.size == size


@pytest.mark.parametrize(
    ("layout", "values"),
    [
        (fuse.IN_HEADER, fuse.InHeader),
        (fuse.OUT_HEADER, fuse.OutHeader),
        (fuse.INIT_IN, fuse.InitIn),
        (fuse.INIT_OUT, fuse.InitOut),
        (fuse.ATTR, fuse.Attr),
        (fuse.ENTRY_OUT, fuse.EntryOut),
        (fuse.SETATTR_IN, fuse.SetattrIn),
        (fuse.LK_IN, fuse.LkIn),
        (fuse.STATFS_OUT, fuse.StatfsOut),
        (fuse.COPY_FILE_RANGE_IN, fuse.CopyFileRangeIn),
        (fuse.DIRENT, fuse.Dirent),
    ],
)
def test_named_values_survive(layout: Struct, values: Any) -> None:
    sample = values(*range(1, len(values._fields) + 1))
    assert values(*layout.unpack(layout.pack(*sample))) == sample


def test_every_layout_is_measured() -> None:
    layouts = {name for name, value in vars(fuse).items() if type(value).__name__ == "Struct"}
    assert layouts - {"Struct"} == set(SIZES)


def test_unknown_opcodes_have_a_name() -> None:
    assert fuse.opcode_name(15) == "READ"
    assert fuse.opcode_name(4_000_000_000) == "opcode 4000000000"
    assert 4_000_000_000 not in fuse.NO_REPLY


@pytest.mark.parametrize(("length", "aligned"), [(0, 0), (1, 8), (8, 8), (25, 32)])
def test_alignment(length: int, aligned: int) -> None:
    assert fuse.align8(length) == aligned


def test_the_tag_fills_its_field() -> None:
    assert virtio_fs.CONFIG.size == 40
    assert virtio_fs.CONFIG.pack(b"x" * 36, 8) == b"x" * 36 + b"\x08\0\0\0"
