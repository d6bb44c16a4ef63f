"""User namespaces: what a process has in one, and what is said where there is none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from services.rpc import user_namespace
from tests.support.ordinary_user import A_USER, as_ordinary_user, with_tun_for_all

PROGRAM = """
import os, sys
from services.rpc import user_namespace as u
assert not u.has_capabilities(u.CAP_SYS_ADMIN)
before = os.readlink("/proc/self/ns/net"), os.readlink("/proc/self/ns/user")
try:
    u.enter(u.NEW_NETWORK)
except u.FailedPreconditionError as error:
    assert before == (os.readlink("/proc/self/ns/net"), os.readlink("/proc/self/ns/user"))
    sys.exit(f"{error.reason}: {error.message}")
assert u.has_capabilities(u.CAP_SYS_ADMIN, u.CAP_NET_ADMIN)
assert before[0] != os.readlink("/proc/self/ns/net")
print(os.geteuid(), os.getegid(), flush=True)
os.execv(sys.executable, [sys.executable, "-c",
    "from services.rpc import user_namespace as u; print(u.has_capabilities(u.CAP_SYS_ADMIN))"])
"""


def run(*prefix: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.tap
def test_an_ordinary_user_gets_rights_that_no_program_inherits() -> None:
    done = run(*with_tun_for_all(as_ordinary_user([])))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f"{A_USER} {A_USER}", "False"]


@pytest.mark.root
def test_where_they_are_forbidden_the_setting_is_named_and_nothing_changes() -> None:
    # The bound of user namespaces is that of each user namespace, so the machine's stays.
    forbid = 'echo 0 >/proc/sys/user/max_user_namespaces && exec "$@"'
    inside = ("unshare", "--user", "--map-root-user", "sh", "-c", forbid, "sh")
    done = run(*inside, "setpriv", "--bounding-set=-sys_admin")
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("USER_NAMESPACE_REFUSED: it needs root, or a user namespace")
    assert line.endswith("raise user.max_user_namespaces, which is 0")


@pytest.mark.tap
def test_a_tap_that_cannot_be_opened_is_named() -> None:
    if Path("/dev/net/tun").stat().st_mode & 0o006:
        pytest.skip("everybody may open /dev/net/tun here")
    done = run(*as_ordinary_user([]))
    assert done.returncode == 1
    assert "/dev/net/tun" in done.stderr


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"user/max_user_namespaces": "0"}, "raise user.max_user_namespaces"),
        ({"kernel/unprivileged_userns_clone": "0"}, "kernel.unprivileged_userns_clone"),
        ({"kernel/apparmor_restrict_unprivileged_userns": "1"}, "AppArmor restricts"),
        ({"user/max_user_namespaces": "0", "kernel/unprivileged_userns_clone": "0"}, "raise user."),
        (
            {
                "user/max_user_namespaces": "1000",
                "kernel/unprivileged_userns_clone": "1",
                "kernel/apparmor_restrict_unprivileged_userns": "0",
            },
            "a container",
        ),
        ({}, "a container"),
    ],
)
def test_the_remedy_follows_from_the_settings(
    tmp_path: Path, settings: dict[str, str], words: str
) -> None:
    for name, value in settings.items():
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(f"{value}\n")
    device = tmp_path / "tun"
    device.touch()
    assert words in user_namespace.remedy(tmp_path, device)


def test_the_remedy_names_a_tap_device_that_is_missing(tmp_path: Path) -> None:
    device = tmp_path / "tun"
    assert f"modprobe tun; chmod 0666 {device}" in user_namespace.remedy(tmp_path, device)
