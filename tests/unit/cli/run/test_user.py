"""Who a command in the guest is run as, and which variables it gets."""

from __future__ import annotations

import grp
import os
import pwd

import pytest
import typer

from services.cli.run.user import PATH, GuestUser, caller, environment, parse_user

ME = GuestUser(1000, 1000, (1000,), "me", "/home/me", "/bin/zsh")


def test_a_command_is_run_as_its_caller() -> None:
    user = caller()
    assert (user.uid, user.gid, user.groups) == (os.geteuid(), os.getegid(), tuple(os.getgroups()))


def test_a_name_has_its_groups_and_home() -> None:
    root = pwd.getpwuid(0)
    user = parse_user("root")
    assert user == GuestUser(
        0, root.pw_gid, tuple(os.getgrouplist("root", root.pw_gid)), "root", "/root", root.pw_shell
    )
    assert parse_user("0") == user


def test_a_number_needs_no_name() -> None:
    assert parse_user("4294900000") == GuestUser(4294900000, 4294900000, (4294900000,))
    assert parse_user("4294900000:7").gid == 7


def test_a_group_that_is_given_is_the_only_one() -> None:
    user = parse_user(f"root:{grp.getgrgid(0).gr_name}")
    assert (user.gid, user.groups) == (0, (0,))


@pytest.mark.parametrize(
    "text", ["", ":", "no-such-user", "-1", "4294967295", "root:", "root:no-such-group", "٣"]
)
def test_who_does_not_exist_is_named(text: str) -> None:
    with pytest.raises(typer.BadParameter, match=r"there is no (user|group)") as refused:
        parse_user(text)
    assert repr(text) in refused.value.message


def test_a_command_gets_a_sane_environment_and_no_secrets() -> None:
    callers = {
        "PATH": "/home/me/bin",
        "LANG": "C.UTF-8",
        "LC_TIME": "de_DE.UTF-8",
        "TERM": "xterm",
        "TOKEN": "secret",
        "HOME": "/elsewhere",
        "XDG_RUNTIME_DIR": "/run/user/1000",
    }
    expected = {
        "PATH": PATH,
        "HOME": "/home/me",
        "SHELL": "/bin/zsh",
        "USER": "me",
        "LOGNAME": "me",
        "LANG": "C.UTF-8",
        "LC_TIME": "de_DE.UTF-8",
    }
    assert environment(ME, callers, terminal=False) == expected
    assert environment(ME, callers, terminal=True) == {**expected, "TERM": "xterm"}


def test_variables_are_given_by_value_or_by_name() -> None:
    given = ["A=1=2", "PATH", "EMPTY=", "UNSET"]
    variables = environment(ME, {"PATH": "/mine"}, terminal=False, given=given)
    assert (variables["A"], variables["PATH"], variables["EMPTY"]) == ("1=2", "/mine", "")
    assert "UNSET" not in variables
    with pytest.raises(typer.BadParameter, match="'=x' has no name"):
        environment(ME, {}, terminal=False, given=["=x"])


def test_a_user_without_a_name_has_none_in_the_environment() -> None:
    variables = environment(GuestUser(7, 7, ()), {}, terminal=False)
    assert variables == {"PATH": PATH, "HOME": "/", "SHELL": "/bin/sh"}
