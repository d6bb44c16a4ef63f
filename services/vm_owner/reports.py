"""The report of a guest's capabilities, and what becomes of each of its fields, as data.

Owns the rule of each field of GuestCapabilities (handshake.md section 4). A field is bytes here, so
that a report can be compared, kept and passed on whole, with the fields that this version does not
know. Must not know protobuf: convert.py takes a message apart.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from services.handshake.capabilities import GuestCapabilities
from services.handshake.pool import Gpa, SwiotlbPool

if TYPE_CHECKING:
    from collections.abc import Mapping


class FieldRule(StrEnum):
    """What becomes of a field once a pool is latched. Until then every report replaces the last."""

    LATCHED = "latched"
    """It stays as it is, present or absent; a report that has it otherwise is refused."""
    REFRESHABLE = "refreshable"
    """A report that has it replaces it; one that lacks it leaves it as it is."""


POOL: Final = "swiotlb_pool"

FIELD_RULES: Final[Mapping[str, FieldRule]] = {
    # Devices are made from these: they must be the same for all of a VM's life.
    POOL: FieldRule.LATCHED,
    "kernel_release": FieldRule.LATCHED,
    # The result of a probe, which may fail at one time and not at another; no device needs it.
    "seccomp_user_notification": FieldRule.REFRESHABLE,
}
"""The rule of each field of GuestCapabilities, in the order of their numbers. The attribute of a
refreshable field has the field's name in Report, too."""

UNKNOWN: Final = ""
"""The key of the fields that this version does not know, all of them together. They are latched,
because a later kernel may publish there what devices are made from."""


@dataclass(frozen=True, slots=True)
class Report:
    """A guest's report, unchecked.

    Attributes:
        base: Announced base of the pool; 0 when not published.
        size_bytes: Announced size of the pool; 0 when not published.
        kernel_release: `uname -r`; empty when not reported.
        seccomp_user_notification: Whether it is available; None when not reported.
        fields: The fields that are present, serialized, by their names in FIELD_RULES and in that
            order; under UNKNOWN, as the last, those that this version does not know.
    """

    base: int = 0
    size_bytes: int = 0
    kernel_release: str = ""
    seccomp_user_notification: bool | None = None
    fields: Mapping[str, bytes] = field(default_factory=dict)

    @property
    def message(self) -> bytes:
        """The whole message, serialized."""
        return b"".join(self.fields.values())

    def as_announced(self) -> GuestCapabilities:
        """Return it for the trace, with the numbers of the guest, valid or not."""
        announced = self.base or self.size_bytes
        return GuestCapabilities(
            pool=SwiotlbPool(Gpa(self.base), self.size_bytes) if announced else None,
            kernel_release=self.kernel_release,
            seccomp_user_notification=self.seccomp_user_notification,
        )

    def without_pool(self) -> Report:
        """Return it as if the kernel published no pool; the pool was refused."""
        fields = {name: value for name, value in self.fields.items() if name != POOL}
        return replace(self, base=0, size_bytes=0, fields=fields)


def latched_differences(latched: Report, report: Report) -> list[str]:
    """Return the latched fields that a report has otherwise; unknown fields count as one."""
    return [
        name or "unknown fields"
        for name in (*FIELD_RULES, UNKNOWN)
        if FIELD_RULES.get(name) is not FieldRule.REFRESHABLE
        and latched.fields.get(name) != report.fields.get(name)
    ]


def refreshed(latched: Report, report: Report) -> Report:
    """Return what is in force after a report whose latched fields are those of `latched`."""
    news = {
        name: getattr(report, name)
        for name, rule in FIELD_RULES.items()
        if rule is FieldRule.REFRESHABLE and name in report.fields
    }
    present = {**latched.fields, **{name: report.fields[name] for name in news}}
    fields = {name: present[name] for name in (*FIELD_RULES, UNKNOWN) if name in present}
    return replace(latched, fields=fields, **news)
