"""The command lines with which known programs start virtiofsd.

Owns the lines and where each comes from. What becomes of them follows from the table (options.py),
and is in docs/virtiofsd.md. DIRECTORY, SOCKET and GROUP stand for names that the program chooses; 3
for the number of a descriptor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class Line:
    """One command line.

    Attributes:
        program: The program that emits it.
        when: The configuration with which it does.
        source: The file and function that build it.
        options: The options.
    """

    program: str
    when: str
    source: str
    options: str


_LIBVIRT: Final = "libvirt `src/qemu/qemu_virtiofs.c`, qemuVirtioFSBuildCommandLine"
_LIBVIRT_NEW: Final = f"{_LIBVIRT} (for a program with the feature separate-options)"
_KATA: Final = (
    "kata-containers 7c6ba40 `src/runtime/virtcontainers/virtiofsd.go`, args; extra arguments: "
    "`src/runtime/Makefile`, DEFVIRTIOFSEXTRAARGS"
)
_KATA_RS: Final = (
    "kata-containers 7c6ba40 `src/runtime-rs/crates/resource/src/share_fs/"
    "share_virtio_fs_standalone.rs`, virtiofsd_args; extra arguments: `src/runtime-rs/Makefile`"
)
_INCUS: Final = "incus be7afc5 `internal/server/device/device_utils_disk.go`, DiskVMVirtiofsdStart"
_MICROVM: Final = "microvm.nix 71beea0 `nixos-modules/microvm/virtiofsd/default.nix`"
_VIRTME: Final = "virtme-ng 4d9dc4d `virtme/commands/run.py`, VirtioFS.start"

LINES: Final = (
    Line("libvirt", "by default, 7.2", _LIBVIRT, "--fd=3 -o source=DIRECTORY"),
    Line(
        "libvirt",
        "xattr, both locks, a cache, a pool of threads and openfiles, 7.2",
        _LIBVIRT,
        "--fd=3 -o source=DIRECTORY,cache=always,xattr,flock,posix_lock --thread-pool-size=16 "
        "--rlimit-nofile=122333",
    ),
    Line(
        "libvirt",
        "without xattr, 7.2",
        _LIBVIRT,
        "--fd=3 -o source=DIRECTORY,no_xattr",
    ),
    Line(
        "libvirt",
        "without locks, 7.2",
        _LIBVIRT,
        "--fd=3 -o source=DIRECTORY,no_flock,no_posix_lock",
    ),
    Line(
        "libvirt",
        "a sandbox and debugging, 7.2",
        _LIBVIRT,
        "--fd=3 -o source=DIRECTORY,sandbox=chroot -d",
    ),
    Line("libvirt", "by default", _LIBVIRT_NEW, "--fd=3 --shared-dir DIRECTORY"),
    Line(
        "libvirt",
        "no cache, xattr, a pool of threads, openfiles and debugging",
        _LIBVIRT_NEW,
        "--fd=3 --shared-dir DIRECTORY --cache never --xattr --thread-pool-size=8 "
        "--rlimit-nofile=122333 --log-level debug",
    ),
    Line(
        "libvirt",
        "a sandbox",
        _LIBVIRT_NEW,
        "--fd=3 --shared-dir DIRECTORY --sandbox namespace",
    ),
    Line(
        "libvirt",
        "of an ordinary user",
        _LIBVIRT_NEW,
        "--fd=3 --shared-dir DIRECTORY --uid-map=:0:1000:1: --uid-map=:1:100000:65536: "
        "--gid-map=:0:1000:1: --gid-map=:1:100000:65536:",
    ),
    Line(
        "Kata",
        "by default",
        _KATA,
        "--syslog --cache=auto --shared-dir=DIRECTORY --fd=3 --thread-pool-size=1 "
        "--announce-submounts",
    ),
    Line(
        "Kata",
        'virtio_fs_extra_args = ["--thread-pool-size=1"]',
        _KATA,
        "--syslog --cache=auto --shared-dir=DIRECTORY --fd=3 --thread-pool-size=1",
    ),
    Line(
        "Kata",
        'virtio_fs_cache = "metadata", no extra arguments',
        _KATA,
        "--syslog --cache=metadata --shared-dir=DIRECTORY --fd=3",
    ),
    Line(
        "Kata",
        "its runtime in Rust, by default",
        _KATA_RS,
        "--socket-path SOCKET --shared-dir DIRECTORY --cache auto --thread-pool-size=1 "
        "-o announce_submounts",
    ),
    Line(
        "Kata",
        "its runtime in Rust, no extra arguments, SELinux in the guest",
        _KATA_RS,
        "--socket-path SOCKET --shared-dir DIRECTORY --cache auto --xattr",
    ),
    Line(
        "Incus",
        "by default",
        _INCUS,
        "--fd=3 --cache=never --shared-dir=DIRECTORY --posix-acl=auto",
    ),
    Line(
        "Incus",
        "for an older virtiofsd",
        _INCUS,
        "--fd=3 --cache=never --shared-dir=DIRECTORY --posix-acl",
    ),
    Line(
        "Incus",
        "a guest with Windows",
        _INCUS,
        "--fd=3 --cache=never --shared-dir=DIRECTORY",
    ),
    Line(
        "Incus",
        "a guest with Windows, io.cache=metadata",
        _INCUS,
        "--fd=3 --cache=metadata --shared-dir=DIRECTORY",
    ),
    Line(
        "Incus",
        "ids are mapped",
        _INCUS,
        "--fd=3 --cache=never --shared-dir=DIRECTORY --translate-uid=map:0:1000000:1000000000 "
        "--translate-uid=forbid-guest:0:0 --translate-gid=map:0:1000000:1000000000 "
        "--translate-gid=forbid-guest:0:0 --translate-uid=forbid-guest:1000000000:3294967295 "
        "--translate-gid=forbid-guest:1000000000:3294967295",
    ),
    Line(
        "microvm.nix",
        "by default",
        _MICROVM,
        "--socket-path=SOCKET --socket-group=GROUP --shared-dir=DIRECTORY --rlimit-nofile 1048576 "
        "--thread-pool-size 2 --posix-acl --xattr --cache=auto --inode-file-handles=prefer",
    ),
    Line(
        "microvm.nix",
        "posixAcl = false, readOnly = true",
        _MICROVM,
        "--socket-path=SOCKET --socket-group=GROUP --shared-dir=DIRECTORY --rlimit-nofile 1048576 "
        "--thread-pool-size 2 --cache=auto --inode-file-handles=prefer --readonly",
    ),
    Line(
        "microvm.nix",
        "posixAcl = false, hypervisor = crosvm",
        _MICROVM,
        "--socket-path=SOCKET --socket-group=GROUP --shared-dir=DIRECTORY --rlimit-nofile 1048576 "
        "--thread-pool-size 2 --cache=auto --inode-file-handles=prefer --tag=TAG",
    ),
    Line(
        "virtme-ng",
        "the host's root, by default",
        _VIRTME,
        "--syslog --no-announce-submounts --socket-path SOCKET --shared-dir DIRECTORY "
        "--sandbox none --cache always",
    ),
    Line(
        "virtme-ng",
        "the host's root, read-only",
        _VIRTME,
        "--syslog --no-announce-submounts --readonly --socket-path SOCKET --shared-dir DIRECTORY "
        "--sandbox none --cache always",
    ),
    Line(
        "virtme-ng",
        "a root of its own",
        _VIRTME,
        "--syslog --no-announce-submounts --posix-acl --socket-path SOCKET --shared-dir DIRECTORY "
        "--sandbox none --cache always",
    ),
)
