"""The guest of guest init: command line, kernel release, seccomp."""

from __future__ import annotations

import platform
from typing import TYPE_CHECKING

import pytest

from services.guest_init import seccomp
from services.guest_init.guest import ThisKernel, vm_words
from services.guest_init.seccomp import user_notification_available

if TYPE_CHECKING:
    from pathlib import Path


async def test_the_command_line_names_the_trace(tmp_path: Path) -> None:
    cmdline = tmp_path / "cmdline"
    cmdline.write_text(
        "swiotlb=force hv_pci_swiotlb=67108864 porthole.vm_id=u-u-i-d "
        "porthole.traceparent=00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01 quiet\n"
    )
    words = vm_words(cmdline)
    assert words.vm_id == "u-u-i-d"
    assert words.traceparent.startswith("00-0af7651916cd43dd8448eb211c80319c-")
    reading = await ThisKernel([], "6.18.26.3-1").read()
    assert reading.capabilities.kernel_release == "6.18.26.3-1"


@pytest.mark.parametrize("content", [None, b"", b"quiet splash", b"\xff\xfe=\0"])
async def test_a_command_line_without_one(tmp_path: Path, content: bytes | None) -> None:
    cmdline = tmp_path / "cmdline"
    if content is not None:
        cmdline.write_bytes(content)
    words = vm_words(cmdline)
    assert (words.traceparent, words.vm_id) == ("", "")
    assert (await ThisKernel([], None).read()).capabilities.kernel_release == platform.release()


@pytest.mark.parametrize(
    ("actions", "available"),
    [
        ("kill_process kill_thread trap errno user_notif trace log allow\n", True),
        ("kill_process kill_thread trap errno trace log allow\n", False),
        ("user_notify\n", False),
    ],
)
def test_the_kernels_list_of_actions_decides(tmp_path: Path, actions: str, available: bool) -> None:
    (tmp_path / "actions_avail").write_text(actions)
    assert user_notification_available(tmp_path / "actions_avail") is available


@pytest.mark.parametrize("available", [True, False])
async def test_it_is_reported_as_the_kernel_has_it(
    monkeypatch: pytest.MonkeyPatch, available: bool
) -> None:
    monkeypatch.setattr("services.guest_init.guest.user_notification_available", lambda: available)
    reading = await ThisKernel([], "6.18.26.3-1").read()
    assert reading.capabilities.seccomp_user_notification is available


def test_without_the_list_the_system_call_decides(tmp_path: Path) -> None:
    # Any kernel that runs these tests is newer than 5.0; a sandbox may forbid the call.
    by_call = user_notification_available(tmp_path / "nowhere")
    assert by_call is seccomp._knows_notification_sizes()
    assert isinstance(user_notification_available(), bool)


def test_an_unknown_machine_has_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "pdp11")
    assert user_notification_available(tmp_path / "nowhere") is False
