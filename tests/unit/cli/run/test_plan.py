"""Where shares, mounts and the working directory of `porthole run` are in the guest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import typer

from services.cli.requests import ShareRequest
from services.cli.run.plan import (
    RunShare,
    check_places,
    parse_run_share,
    share_mounts,
    share_requests,
    working_directory,
)

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize(
    ("text", "guest", "read_only"),
    [
        ("{}:/work", "/work", False),
        ("{}:/work:ro", "/work", True),
        ("{}:/work/", "/work", False),
        ("{}://a//b/.", "/a/b", False),
        ("{}:/proceeds", "/proceeds", False),
    ],
)
def test_a_share_is_a_directory_and_its_place(
    tmp_path: Path, text: str, guest: str, read_only: bool
) -> None:
    share = parse_run_share(text.format(tmp_path))
    assert share == RunShare(str(tmp_path), guest, read_only)


def test_the_directory_may_be_relative_and_have_colons(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a:b").mkdir()
    monkeypatch.chdir(tmp_path / "a:b")
    assert parse_run_share(".:/work").host == str(tmp_path / "a:b")
    assert parse_run_share("../a:b:/work:ro").host == str(tmp_path / "a:b")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("work", "no directory on both sides of a colon"),
        ("/tmp:ro", "no directory on both sides of a colon"),
        (":/work", "no directory on both sides of a colon"),
        ("/:", "no directory on both sides of a colon"),
        ("/:work", "'work', must be an absolute path; write HOST:/work"),
        ("/:/work:rw", "'rw', must be an absolute path"),
        ("/:/a/../b", "must not have '..'"),
        ("/nowhere/at/all:/work", "/nowhere/at/all is not a directory of this host"),
        ("/:/", "nothing can be shared at /, "),
        ("/://", "nothing can be shared at /, "),
        ("/:/proc", "nothing can be shared at /proc"),
        ("/:/dev/shm/x", "nothing can be shared at /dev/shm/x"),
    ],
)
def test_what_is_no_share_is_refused_with_a_remedy(text: str, said: str) -> None:
    with pytest.raises(typer.BadParameter) as refused:
        parse_run_share(text)
    assert said in refused.value.message
    assert repr(text) in refused.value.message


def test_two_shares_cannot_be_at_one_place() -> None:
    check_places([RunShare("/a", "/work"), RunShare("/a", "/more")])
    with pytest.raises(typer.BadParameter, match="/a and /b are both to be at /work"):
        check_places([RunShare("/a", "/work"), RunShare("/b", "/work")])


def test_the_owner_is_asked_for_the_root_and_for_each_directory_once() -> None:
    one, two, three = RunShare("/a", "/x"), RunShare("/a", "/y"), RunShare("/a", "/z", True)
    assert share_requests([one, two, three]) == {
        ShareRequest("/", "root", "ro;xattr=all;submounts=off"): [],
        ShareRequest("/a", "share0", ""): [one, two],
        ShareRequest("/a", "share1", "ro"): [three],
    }


def test_a_place_within_another_is_mounted_after_it() -> None:
    inner, outer = RunShare("/a", "/work/inner", True), RunShare("/b", "/work")
    mounts = share_mounts(share_requests([inner, outer]))
    assert [(m.fs_type, m.source, m.target, m.read_only) for m in mounts] == [
        ("virtiofs", "share1", "/work", False),
        ("virtiofs", "share0", "/work/inner", True),
    ]


@pytest.mark.parametrize(
    ("present", "found"),
    [
        ("/usr/share", "/usr/share"),
        ("/", "/"),
        ("/proc/self", "/"),
        ("/run/user/0", "/"),
        ("/runner", "/runner"),
    ],
)
def test_the_working_directory_is_the_present_one_if_the_guest_has_it(
    present: str, found: str
) -> None:
    assert working_directory(present, []) == found


def test_a_share_hides_what_is_at_its_place(tmp_path: Path) -> None:
    (tmp_path / "kept").mkdir()
    shares = [RunShare("/nowhere", "/home"), RunShare(str(tmp_path), "/home/me")]
    assert working_directory("/home/me", shares) == "/home/me"
    assert working_directory("/home/me/kept", shares) == "/home/me/kept"
    assert working_directory("/home/me/lost", shares) == "/"
    assert working_directory("/home/you", shares) == "/"
    assert working_directory("/run/x", [RunShare("/", "/run/x")]) == "/run/x"
