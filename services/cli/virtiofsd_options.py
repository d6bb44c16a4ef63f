"""The options of `-o source=…,cache=…`, which libvirt and users of the C virtiofsd give.

Owns which of these options are supported. An option that this device cannot honour is refused by
name, never ignored.
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
"""libvirt doubles a comma in a value (virQEMUBuildBufferEscapeComma)."""

_AS_IT_IS: Final = ("xattr", "flock", "posix_lock", "no_writeback", "sandbox=none")
"""Options that are accepted because this device always behaves so."""

_NEVER: Final = {
    "no_xattr": "extended attributes are always served",
    "no_flock": "locks of guests are always those of the host",
    "no_posix_lock": "locks of guests are always those of the host",
    "sandbox": "the process is not put into namespaces; every path of a guest is resolved beneath "
    "the shared directory",
}


@dataclass(frozen=True, slots=True)
class VirtiofsdOptions:
    """The parsed options.

    Attributes:
        source: The directory to share; None: not given.
        share: Options of the share, in the form of `--options`.
    """

    source: Path | None
    share: tuple[str, ...]


def parse(texts: Iterable[str]) -> VirtiofsdOptions:
    """Parse the values of all `-o`.

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
