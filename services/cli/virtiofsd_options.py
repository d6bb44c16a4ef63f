"""`-o source=…,cache=…`: how libvirt, and whoever started the C virtiofsd, gives it its options.

Owns which of them have a meaning here. One that asks for something that this device does not do is
refused by name, never ignored. Must not know flags or devices.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final

from services.handshake.errors import InvalidArgumentError

if TYPE_CHECKING:
    from collections.abc import Iterable

_ITEM: Final = re.compile(r"(?:[^,]|,,)+")
"""libvirt writes a comma within a value twice (virQEMUBuildBufferEscapeComma)."""

_AS_IT_IS: Final = ("xattr", "flock", "posix_lock", "no_writeback", "sandbox=none")
"""What this device does anyway."""

_NEVER: Final = {
    "no_xattr": "extended attributes are always served",
    "no_flock": "locks of guests are always those of the host",
    "no_posix_lock": "locks of guests are always those of the host",
    "sandbox": "the process is not put into namespaces; what a guest can reach is resolved beneath "
    "the shared directory",
}


@dataclass(frozen=True, slots=True)
class VirtiofsdOptions:
    """What the options mean here.

    Attributes:
        source: The directory to share; None: not given.
        share: Options of the share, as `--options` has them.
    """

    source: Path | None
    share: tuple[str, ...]


def parse(texts: Iterable[str]) -> VirtiofsdOptions:
    """Read the values of all `-o`.

    Raises:
        InvalidArgumentError: OPTION_UNKNOWN, OPTION_SYNTAX.
    """
    source: Path | None = None
    share: list[str] = []
    for item in (item.replace(",,", ",") for text in texts for item in _ITEM.findall(text)):
        key, _, value = item.partition("=")
        if key == "source":
            if not value:
                raise InvalidArgumentError("OPTION_SYNTAX", f"-o {item}: write source=<directory>")
            source = Path(value)
        elif key == "cache" or item == "writeback":
            share.append(item)
        elif item not in _AS_IT_IS:
            known = ", ".join(("source=<directory>", "cache=<mode>", "writeback", *_AS_IT_IS))
            why = _NEVER.get(key, "this device has no such option")
            raise InvalidArgumentError(
                "OPTION_UNKNOWN", f"-o {item}: {why}; leave it out. Known are {known}"
            )
    return VirtiofsdOptions(source, tuple(share))
