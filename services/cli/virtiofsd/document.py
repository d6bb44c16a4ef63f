"""Writes docs/virtiofsd.md: `python -m services.cli.virtiofsd.document docs/virtiofsd.md`.

Owns the form of that document. Its facts are those of the table (options.py) and of the lines that
known programs emit (launchers.py).
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Final

from services.cli.virtiofsd.launchers import LINES
from services.cli.virtiofsd.options import SECTIONS
from services.cli.virtiofsd.reading import read
from services.handshake.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from services.cli.virtiofsd.launchers import Line

_HEAD: Final = """# The options of virtiofsd

[//]: # (Generated from options.py and launchers.py in services/cli/virtiofsd/ by `make schemas`.)

`porthole device fs`, and `porthole-fs`, which is the same, know every option of virtiofsd 1.14 and
of the virtiofsd in C that came with QEMU up to 7.2. An option is **done**; or **accepted**: the
device does otherwise, which is harmless, and a line in the log says so; or **refused**, with exit
code 2 and a line that says why. What asks for more safety than the device has is refused, because
who gave it relies on it. An option that no virtiofsd has is refused as unknown.

The value of an option is the next word, or stands behind `=`. If an option may also be without a
value, as `--posix-acl`, it stands behind `=`. With `-o`, a comma in a value is doubled. Of an
option that is repeated the last one counts; two cache modes are refused.

Without an option the device differs from virtiofsd in this:

| | virtiofsd | here |
|---|---|---|
| sandbox, filter of system calls | namespaces; a filter | none; sandbox the process from outside |
| extended attributes | off | `user.*`, and those that ACLs are in: `xattr=safe` |
| set-id bits, device nodes | of a guest's root | the same, unless `--options='nosuid;nodev'` |
| locks | 1.14: in the guest; 7.2: the same, unless asked for | those of the host |
| file systems below the shared directory | 1.14 announces them | announced |
| capabilities | most are dropped | kept as given |
"""
_TABLE: Final = "| 1.14 | 7.2 | | |\n|---|---|---|---|\n"
_LINES: Final = """## What known programs give

Tests start the device with each of these lines.

| program | with | line | what becomes of it |
|---|---|---|---|
"""
_SOURCES: Final = """## Where this is from

The options are those that `virtiofsd --help` lists, of Debian's virtiofsd 1.14.0 and of its
qemu-system-common 7.2, and the keys of `-o` that their sources have (`parse_compat` in main.rs;
`tools/virtiofsd/helper.c`, `fuse_lowlevel.c` and `passthrough_ll.c` of QEMU). The lines are from:

"""


def document() -> str:
    """Return the text of docs/virtiofsd.md."""
    parts = [_HEAD]
    for title, rows in SECTIONS:
        listed = (
            f"| {_forms(row.rust)} | {_forms(row.c)} | {row.verdict} | {_cell(row.why)} |\n"
            for row in rows
        )
        parts.append(f"## {title}\n\n{_TABLE}{''.join(listed)}")
    parts.append(_LINES + "".join(_line(line) for line in LINES))
    parts.append(_SOURCES + "".join(f"- {source}\n" for source in _sources()))
    return "\n".join(parts)


def outcome(line: Line) -> str:
    """Return what becomes of a line, in a few words."""
    try:
        given = read(line.options.split())
    except InvalidArgumentError as error:
        return f"refused: `{error.message.partition(': ')[0]}`"
    logged = ", ".join(f"`{note.partition(' is accepted: ')[0]}`" for note in given.notes)
    return f"starts, and logs {logged}" if logged else "starts"


def _line(line: Line) -> str:
    return f"| {line.program} | {line.when} | `{line.options}` | {outcome(line)} |\n"


def _sources() -> Iterator[str]:
    yield from dict.fromkeys(line.source for line in LINES)


def _forms(forms: tuple[str, ...]) -> str:
    return ", ".join(f"`{form}`" for form in forms) or "-"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(document(), encoding="utf-8")
