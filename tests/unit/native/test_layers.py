"""What the files of C say that they must not know, they do not include: no arrow points up."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

# Rows from top to bottom. The groups of a row are independent of each other; each is made of the
# files with these names, which may include each other.
LIBRARY = (
    ("layouts",),
    ("serve", "net net_receive net_transmit net_private"),
    (
        "request operations names files directories metadata acls",
        "queue queue_private queue_wait chain held_chains",
        "net_header",
        "net_source",
        "rate_limit",
        "python_pins",
        "mounts",
    ),
    ("mount mount_private nodes node_index eviction reopening open_files relief",),
    ("volumes", "lost_memory"),
    ("status", "descriptors", "credentials", "buffers", "mutex", "bound", "outcome", "clock"),
)
SHARED = (
    ("histogram", "vhost_user"),
    ("ring",),
    ("ram",),
    ("process",),
)
FRONT_END = (
    ("main",),
    ("engine", "floor"),
    ("workload",),
    ("device", "worker"),
    ("waiting", "requests"),
    ("options",),
    ("pattern",),
)
NET_FRONT_END = (
    ("main",),
    ("adapter",),
    ("tap", "checksum"),
)
NET_LOAD = (
    ("main",),
    ("client",),
    ("server",),
)
FUZZ_TARGETS = (
    ("fuse", "mount", "net", "ring", "serve"),
    ("guest", "guest_ring", "share"),
    ("guest_memory",),
    ("requests", "poison", "mutator"),
    ("fuzz",),
)
MINI_INIT = (
    ("main",),
    ("requests", "power", "modules"),
    ("commands", "mounts", "network", "kernel"),
    ("spawn", "jobs", "netlink"),
    ("messages",),
    ("published device_tree", "port", "listening"),
    ("frames", "processes", "waiting"),
    ("files", "log", "clock"),
)


@pytest.mark.parametrize(
    ("folders", "rows"),
    [
        (["native"], LIBRARY),
        (["bench/front_end/fs", "bench/front_end/shared"], FRONT_END + SHARED),
        (["bench/front_end/net", "bench/front_end/shared"], NET_FRONT_END + SHARED),
        (["bench/front_end/load", "bench/front_end/shared"], NET_LOAD + SHARED),
        (["native/fuzz"], FUZZ_TARGETS),
        (["services/guest_init/mini_init"], MINI_INIT),
    ],
)
def test_files_include_downwards_only(
    folders: list[str], rows: tuple[tuple[str, ...], ...]
) -> None:
    place = {
        name: (depth, group)
        for depth, row in enumerate(rows)
        for group in row
        for name in group.split()
    }
    sources = sorted(path for folder in folders for path in (ROOT / folder).glob("*.[ch]"))
    assert {source.stem for source in sources} == set(place), "each file is in one row"
    for source in sources:
        depth, group = place[source.stem]
        for included in re.findall(r'^#include "([a-z_]+)\.h"$', source.read_text(), re.MULTILINE):
            below, other = place[included]
            assert below > depth or other == group, f"{source.name} must not know {included}.h"


@pytest.mark.parametrize(
    ("folder", "names", "unknown"),
    [
        ("native", "queue queue_private queue_wait chain held_chains", "linux/(fuse|virtio_net).h"),
        ("native", "net net_receive net_transmit net_header", "linux/(fuse|virtio_ring).h"),
        ("native", "mount nodes open_files volumes status mounts", "linux/(fuse|virtio_ring).h"),
        (
            "native",
            "request operations names files directories metadata acls",
            "linux/virtio_ring.h",
        ),
        ("bench/front_end/shared", "ring vhost_user ram", "linux/(fuse|virtio_net).h"),
        ("bench/front_end/fs", "waiting engine main options", "linux/fuse.h"),
        ("bench/front_end/net", "main", "linux/virtio_net.h"),
        (
            "services/guest_init/mini_init",
            "commands spawn jobs port frames published device_tree netlink power",
            "pb_(en|de)code.h",
        ),
    ],
)
def test_protocols_stay_where_they_are_spoken(folder: str, names: str, unknown: str) -> None:
    for name in names.split():
        for source in (ROOT / folder).glob(f"{name}.[ch]"):
            assert not re.search(rf"#include <{unknown}>", source.read_text()), source.name
