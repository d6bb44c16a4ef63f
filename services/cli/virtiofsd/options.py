"""Every option of virtiofsd, and what `porthole device fs` makes of it.

Owns the table. What the command accepts, logs and refuses follows from it (reading.py), and so does
docs/virtiofsd.md (document.py). A row that changes here changes everywhere.

The options are those that the programs themselves list: virtiofsd 1.14.0, in Rust, and the one in C
that QEMU had up to its version 7.2. An option that asks for more safety than there is, is
refused: whoever gave it relies on it.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final


class Verdict(StrEnum):
    """What becomes of an option."""

    DONE = "done"
    """The device does what it asks for."""
    ACCEPTED = "accepted"
    """The device does otherwise, which is harmless; one line in the log says so."""
    REFUSED = "refused"
    """The device ends with its reason before it serves anything."""


class Sets(StrEnum):
    """What an option sets of this command."""

    NOTHING = ""
    COMMAND = "command"
    """The command has an option of this name of its own, and reads it itself."""
    SOURCE = "source"
    SHARE = "share"
    """An option of the share, in the form of `--options`."""
    XATTR = "xattr"
    """A value of the share's option of this name."""
    XATTR_MAP = "xattrmap"
    """Rules, which count instead."""
    SOCKET_PATH = "socket path"
    LOG_LEVEL = "log level"
    SYSLOG = "syslog"
    DESCRIPTORS = "descriptors"
    VERSION = "version"


@dataclass(frozen=True, slots=True)
class Row:
    """One option, or one of its values.

    A form is `--name`, `--name=word`, `--name=<what>`, and the same with `-o name`; `<what>` stands
    for any value. Of several rows that fit a value the first one counts.

    Attributes:
        rust: Its forms in virtiofsd 1.14.
        c: Its forms in virtiofsd 7.2.
        verdict: What becomes of it.
        why: What the device does, and why it refuses: the rest of a sentence after a colon.
        sets: What it sets.
        to: The value that is set; empty: the one that was given.
        pattern: A value must match it fully; empty: any does.
    """

    rust: tuple[str, ...]
    c: tuple[str, ...]
    verdict: Verdict
    why: str
    sets: Sets = Sets.NOTHING
    to: str = ""
    pattern: str = ""


_DONE, _ACCEPTED, _REFUSED = Verdict.DONE, Verdict.ACCEPTED, Verdict.REFUSED

_NO_SANDBOX: Final = (
    "the process is not put into namespaces or a chroot; paths of a guest are resolved beneath the "
    "shared directory. Sandbox the process from outside, for instance by systemd, and give "
    "--sandbox=none"
)
_NO_SECCOMP: Final = (
    "there is no filter of system calls; install one from outside, for instance by systemd's "
    "SystemCallFilter=, and give --seccomp=none"
)
_NO_LABEL: Final = "no security label is set when a file is made"
_NO_ID_MAP: Final = (
    "ids of users and groups are not mapped in ranges; `--options='uid=N;gid=N'` gives all files "
    "one owner"
)
_HOST_LOCKS: Final = "locks of guests are always those of the host"
_NOT_MIGRATED: Final = (
    "the device does not offer to migrate its state, so a front-end refuses to migrate it"
)
_ONE_WORKER: Final = "each queue has one worker; --queues says how many queues there are"
_READDIRPLUS: Final = "the guest decides when it lists with attributes; with cache=none it does not"
_NO_DIRECT: Final = (
    "O_DIRECT passes by the guest's cache, and the host's is used all the same; what is written is "
    "as durable"
)

SECTIONS: Final[tuple[tuple[str, tuple[Row, ...]], ...]] = (
    (
        "The share, and its socket",
        (
            Row(
                ("--shared-dir=<directory>", "-o source=<directory>"),
                ("-o source=<directory>",),
                _DONE,
                "the directory that is shared",
                Sets.SOURCE,
                pattern=".+",
            ),
            Row(
                ("--tag=<tag>",),
                (),
                _DONE,
                "the mount tag, for a front-end that asks for it",
                Sets.COMMAND,
            ),
            Row(
                ("--socket-path=<path>",),
                ("--socket-path=<path>",),
                _DONE,
                "listen there; `<path>.pid` gets the process id, as with 1.14",
                Sets.COMMAND,
            ),
            Row(("--socket=<path>",), (), _DONE, "the same", Sets.SOCKET_PATH),
            Row(
                ("--socket-group=<group>",),
                ("--socket-group=<group>",),
                _DONE,
                "this group may connect as well",
                Sets.COMMAND,
            ),
            Row(
                ("--fd=<number>",),
                ("--fd=<number>",),
                _DONE,
                "listen on this inherited descriptor",
                Sets.COMMAND,
            ),
            Row(("--readonly",), (), _DONE, "writing is refused", Sets.COMMAND),
        ),
    ),
    (
        "What a guest may cache",
        (
            Row(
                ("--cache=auto", "-o cache=auto"),
                ("-o cache=auto",),
                _DONE,
                "the default, here as there",
                Sets.SHARE,
                "cache=auto",
            ),
            Row(
                ("--cache=always", "-o cache=always"),
                ("-o cache=always",),
                _DONE,
                "everything, for a day",
                Sets.SHARE,
                "cache=always",
            ),
            Row(
                ("--cache=never", "-o cache=none"),
                ("-o cache=none",),
                _DONE,
                "nothing; `--cache=none` is the same",
                Sets.SHARE,
                "cache=none",
            ),
            Row(
                ("--cache=metadata", "-o cache=metadata"),
                (),
                _ACCEPTED,
                "the guest keeps nothing, as with --cache=never: not its data, as asked, and "
                "neither names nor attributes",
                Sets.SHARE,
                "cache=none",
            ),
            Row(
                ("--allow-mmap",),
                (),
                _DONE,
                "files can be mapped whatever is cached",
            ),
            Row(
                ("--writeback", "-o writeback"),
                ("-o writeback",),
                _DONE,
                "the guest may keep writes back",
                Sets.SHARE,
                "writeback",
            ),
            Row(("-o no_writeback",), ("-o no_writeback",), _DONE, "the default"),
            Row(
                ("--allow-direct-io", "-o allow_direct_io"),
                ("-o allow_direct_io",),
                _ACCEPTED,
                _NO_DIRECT,
            ),
            Row(("-o no_allow_direct_io",), ("-o no_allow_direct_io",), _DONE, "the default"),
            Row(("-o readdirplus",), ("-o readdirplus",), _ACCEPTED, _READDIRPLUS),
            Row(
                ("--no-readdirplus", "-o no_readdirplus"),
                ("-o no_readdirplus",),
                _ACCEPTED,
                _READDIRPLUS,
            ),
            Row(
                (),
                ("-o timeout=<seconds>",),
                _REFUSED,
                "how long the guest may keep names and attributes follows from cache=",
            ),
        ),
    ),
    (
        "What a file is",
        (
            Row(
                ("--xattr", "-o xattr"),
                ("-o xattr",),
                _DONE,
                "all names reach the host's files: `--options=xattr=all`",
                Sets.XATTR,
                "all",
            ),
            Row(
                ("-o no_xattr",),
                ("-o no_xattr",),
                _DONE,
                "there are none: `--options=xattr=off`",
                Sets.XATTR,
                "off",
            ),
            Row(
                ("--xattrmap=<rules>", "-o xattrmap=<rules>"),
                ("-o xattrmap=<rules>",),
                _DONE,
                "the rules decide, with --xattr and without; names without a rule are refused",
                Sets.XATTR_MAP,
            ),
            Row(
                ("--posix-acl=never", "-o no_posix_acl"),
                ("-o no_posix_acl",),
                _ACCEPTED,
                "POSIX ACLs of the host's files are obeyed in any case",
            ),
            Row(
                ("--posix-acl=auto",),
                (),
                _DONE,
                "POSIX ACLs are obeyed in a guest that takes them, as Linux does",
            ),
            Row(
                ("--posix-acl", "--posix-acl=always", "-o posix_acl"),
                ("-o posix_acl",),
                _ACCEPTED,
                "POSIX ACLs are obeyed. A guest that does not take them is served as well, as with "
                "--posix-acl=auto; Linux takes them",
            ),
            Row(
                ("--security-label=never", "-o no_security_label"),
                ("-o no_security_label",),
                _DONE,
                _NO_LABEL,
            ),
            Row(
                (
                    "--security-label",
                    "--security-label=auto",
                    "--security-label=always",
                    "-o security_label",
                ),
                ("-o security_label",),
                _REFUSED,
                _NO_LABEL,
            ),
            Row(
                ("--killpriv-v2", "-o killpriv_v2"),
                ("-o killpriv_v2",),
                _DONE,
                "the device clears the set-id bits of a file that is written",
            ),
            Row(
                ("--no-killpriv-v2", "-o no_killpriv_v2"),
                ("-o no_killpriv_v2",),
                _ACCEPTED,
                "the device clears set-id bits in any case, so that the guest need not",
            ),
            Row((), ("-o flock", "-o posix_lock"), _DONE, _HOST_LOCKS),
            Row(
                ("-o no_flock", "-o no_posix_lock"),
                ("-o no_flock", "-o no_posix_lock"),
                _REFUSED,
                f"{_HOST_LOCKS}, which programs there meet",
            ),
            Row(
                ("--preserve-noatime",),
                (),
                _DONE,
                "O_NOATIME reaches the host; a file for which it refuses that is opened without",
            ),
            Row(
                ("--announce-submounts", "-o announce_submounts"),
                ("-o announce_submounts",),
                _DONE,
                "what is mounted below the shared directory is a file system of its own in the "
                "guest",
            ),
            Row(
                ("--no-announce-submounts",),
                (),
                _ACCEPTED,
                "what is mounted below the shared directory is announced to every guest that takes "
                "it, so that no two files have one inode number",
            ),
            Row(
                ("--inode-file-handles=prefer", "--inode-file-handles=fallback"),
                (),
                _DONE,
                "a file that the guest does not use is found again by its handle where the host "
                "gives one, otherwise by its name",
            ),
            Row(
                ("--inode-file-handles=never",),
                (),
                _REFUSED,
                "handles are used where the host gives them. Without CAP_DAC_READ_SEARCH it gives "
                "none; leave the option out",
            ),
            Row(
                ("--inode-file-handles=mandatory",),
                (),
                _REFUSED,
                "files in use have a descriptor, and others are found by name where the host gives "
                "no handles; give --inode-file-handles=prefer",
            ),
            Row(
                (
                    "--translate-uid=<rule>",
                    "--translate-gid=<rule>",
                    "--uid-map=<range>",
                    "--gid-map=<range>",
                ),
                (),
                _REFUSED,
                _NO_ID_MAP,
            ),
        ),
    ),
    (
        "The process",
        (
            Row(
                ("--sandbox=none",),
                (),
                _DONE,
                "the process is not put into a sandbox",
            ),
            Row(
                (
                    "--sandbox=namespace",
                    "--sandbox=chroot",
                    "-o sandbox=namespace",
                    "-o sandbox=chroot",
                ),
                ("-o sandbox=namespace", "-o sandbox=chroot"),
                _REFUSED,
                _NO_SANDBOX,
            ),
            Row(("--seccomp=none",), (), _DONE, "there is no filter of system calls"),
            Row(
                ("--seccomp=kill", "--seccomp=log", "--seccomp=trap"),
                (),
                _REFUSED,
                _NO_SECCOMP,
            ),
            Row(
                ("--modcaps=<+capability:…>", "-o modcaps=<+capability:…>"),
                ("-o modcaps=<+capability:…>",),
                _ACCEPTED,
                "the process keeps all capabilities that it is started with",
                pattern=r"\+\w+(:\+\w+)*",
            ),
            Row(
                ("--modcaps=<-capability:…>", "-o modcaps=<-capability:…>"),
                ("-o modcaps=<-capability:…>",),
                _REFUSED,
                "the process drops no capability; start it without, for instance by systemd's "
                "CapabilityBoundingSet=",
            ),
            Row(
                ("--rlimit-nofile=<number>",),
                ("--rlimit-nofile=<number>",),
                _DONE,
                "the process has at most so many descriptors, 256 at least; fewer, with a warning, "
                "if it may not raise its hard limit. With 0, and without the option, it takes as "
                "many as it may have, up to 1,048,576",
                Sets.DESCRIPTORS,
                pattern=r"\d{1,10}",
            ),
            Row(
                ("--thread-pool-size=<number>",),
                ("--thread-pool-size=<number>",),
                _ACCEPTED,
                _ONE_WORKER,
                pattern=r"\d{1,10}",
            ),
            Row((), ("-o max_idle_threads=<number>",), _ACCEPTED, _ONE_WORKER, pattern=r"\d{1,10}"),
            Row(("-f",), ("-f",), _DONE, "the process stays in the foreground"),
            Row(
                (),
                ("--daemonize",),
                _REFUSED,
                "the process stays in the foreground, and whoever starts it would wait for it",
            ),
            Row((), ("-o allow_root",), _DONE, "every user of the guest has the share"),
            Row(
                ("--migration-mode=find-paths", "--migration-mode=file-handles"),
                (),
                _ACCEPTED,
                _NOT_MIGRATED,
            ),
            Row(
                ("--migration-on-error=abort", "--migration-on-error=guest-error"),
                (),
                _ACCEPTED,
                _NOT_MIGRATED,
            ),
            Row(
                ("--migration-verify-handles", "--migration-confirm-paths"),
                (),
                _ACCEPTED,
                _NOT_MIGRATED,
            ),
        ),
    ),
    (
        "Its log, and what it prints",
        (
            Row(
                (
                    "--log-level=error",
                    "--log-level=warn",
                    "--log-level=info",
                    "--log-level=debug",
                    "--log-level=trace",
                    "--log-level=off",
                ),
                (),
                _DONE,
                "`trace` is `debug`",
                Sets.COMMAND,
            ),
            Row(("-o loglevel=err",), ("-o log_level=err",), _DONE, "", Sets.LOG_LEVEL, "error"),
            Row(("-o loglevel=warn",), ("-o log_level=warn",), _DONE, "", Sets.LOG_LEVEL, "warn"),
            Row(("-o loglevel=info",), ("-o log_level=info",), _DONE, "", Sets.LOG_LEVEL, "info"),
            Row(
                ("-o loglevel=debug",), ("-o log_level=debug",), _DONE, "", Sets.LOG_LEVEL, "debug"
            ),
            Row(
                ("-d",),
                ("-d", "--debug", "-o debug"),
                _DONE,
                "as `--log-level=debug`",
                Sets.LOG_LEVEL,
                "debug",
            ),
            Row(
                ("--syslog",),
                ("--syslog",),
                _DONE,
                "the log goes to /dev/log; to stderr, with a warning, where there is none",
                Sets.SYSLOG,
                "yes",
            ),
            Row(
                ("--print-capabilities",),
                ("--print-capabilities",),
                _DONE,
                "the JSON of vhost-user.json",
                Sets.COMMAND,
            ),
            Row(("-h", "--help"), ("-h", "--help"), _DONE, "", Sets.COMMAND),
            Row(("-V", "--version"), ("-V", "--version"), _DONE, "", Sets.VERSION, "yes"),
        ),
    ),
)
"""The rows, by what they are about."""

ROWS: Final = tuple(row for _, rows in SECTIONS for row in rows)
