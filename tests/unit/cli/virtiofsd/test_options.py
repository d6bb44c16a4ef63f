"""The table of virtiofsd's options: complete, and what follows from it."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from services.cli.virtiofsd.document import document, outcome
from services.cli.virtiofsd.launchers import LINES
from services.cli.virtiofsd.options import ROWS, Sets, Verdict
from services.cli.virtiofsd.reading import read
from services.handshake.errors import InvalidArgumentError

REPOSITORY = Path(__file__).parents[4]


def words(text: str) -> set[str]:
    return set(text.split())


OF_RUST = words(
    "--shared-dir --tag --socket --socket-path --socket-group --fd --thread-pool-size "
    "--xattr --posix-acl --xattrmap --sandbox --readonly --seccomp --announce-submounts "
    "--no-announce-submounts --inode-file-handles --cache --allow-mmap --no-readdirplus "
    "--writeback --allow-direct-io --print-capabilities --modcaps --log-level --syslog "
    "--rlimit-nofile -d --no-killpriv-v2 --killpriv-v2 -f --security-label --uid-map "
    "--gid-map --translate-uid --translate-gid --preserve-noatime --migration-mode "
    "--migration-on-error --migration-verify-handles --migration-confirm-paths -h --help "
    "-V --version"
)
LEGACY_OF_RUST = words(
    "xattrmap cache loglevel sandbox source modcaps xattr no_xattr readdirplus "
    "no_readdirplus writeback no_writeback allow_direct_io no_allow_direct_io "
    "announce_submounts killpriv_v2 no_killpriv_v2 posix_acl no_posix_acl security_label "
    "no_security_label no_posix_lock no_flock"
)
OF_C = words(
    "-h --help -V --version --print-capabilities -d --debug --syslog -f --daemonize "
    "--rlimit-nofile --socket-path --socket-group --fd --thread-pool-size"
)
LEGACY_OF_C = words(
    "debug cache flock no_flock log_level max_idle_threads posix_lock no_posix_lock "
    "readdirplus no_readdirplus sandbox timeout writeback no_writeback xattr no_xattr "
    "xattrmap modcaps allow_direct_io no_allow_direct_io announce_submounts posix_acl "
    "no_posix_acl security_label no_security_label killpriv_v2 no_killpriv_v2 source "
    "allow_root"
)

C = Path("/usr/lib/qemu/virtiofsd")
RUST = REPOSITORY / "build/bench/virtiofsd/run"


def named(forms: list[str]) -> set[str]:
    return {form.partition("=")[0] for form in forms}


def legacy(names: set[str]) -> set[str]:
    return {f"-o {name}" for name in names}


def test_every_option_of_both_has_a_row_and_no_other() -> None:
    assert named([form for row in ROWS for form in row.rust]) == OF_RUST | legacy(LEGACY_OF_RUST)
    assert named([form for row in ROWS for form in row.c]) == OF_C | legacy(LEGACY_OF_C)


def test_no_form_has_two_rows() -> None:
    for forms in ([f for row in ROWS for f in row.rust], [f for row in ROWS for f in row.c]):
        assert len(forms) == len(set(forms))


def listed(program: Path) -> str:
    return subprocess.run([program, "--help"], capture_output=True, text=True, check=True).stdout


@pytest.mark.skipif(not C.exists(), reason="needs virtiofsd of qemu-system-common 7.2")
def test_the_list_of_7_2_is_that_of_the_program() -> None:
    text = listed(C)
    own = set(re.findall(r"(?<=\s)--?[a-zA-Z][a-z-]*", text)) - {"-o"}
    assert own <= OF_C
    keys = set(re.findall(r"-o ([a-z_0-9]+)", text)) | set(re.findall(r"[|/](no_[a-z_0-9]+)", text))
    assert keys <= LEGACY_OF_C
    assert LEGACY_OF_C - keys == set()


@pytest.mark.skipif(not RUST.exists(), reason="needs virtiofsd, which `make bench` fetches")
def test_the_list_of_1_14_is_that_of_the_program() -> None:
    if "1.14" not in subprocess.check_output([RUST, "--version"], text=True):
        pytest.skip("is another version")
    names = set(re.findall(r"^ +(?:-\w, )?(--?[a-zA-Z][a-z0-9-]*)", listed(RUST), re.MULTILINE))
    assert names - {"-o"} <= OF_RUST
    assert {name for name in OF_RUST if name.startswith("--")} <= names


@pytest.mark.parametrize(
    "asks",
    [
        *("--sandbox=namespace", "--sandbox=chroot", "--seccomp=kill", "--seccomp=trap"),
        *("--modcaps=-chown", "--modcaps=+sys_admin:-chown"),
        *("--security-label", "--uid-map=:0:1:1:", "--translate-uid=squash-guest:0:1:1"),
        *("-o sandbox=namespace", "-o sandbox=chroot", "-o modcaps=-chown"),
        *("-o security_label", "-o no_flock", "-o no_posix_lock", "-o timeout=0"),
    ],
)
def test_what_asks_for_more_safety_than_there_is_is_refused(asks: str) -> None:
    with pytest.raises(InvalidArgumentError) as refused:
        read(asks.split())
    assert refused.value.reason == "OPTION_REFUSED"
    assert refused.value.message.startswith(f"{asks}: ")
    assert len(refused.value.message) > len(f"{asks}: ") + 20


def test_every_row_is_what_reading_makes_of_its_forms() -> None:
    """Each form is read by the row that has it: refused, noted, or neither."""
    for row in ROWS:
        for form in {*row.rust, *row.c}:
            name, _, value = form.partition("=")
            sample = {"<number>": "7", "<+capability:…>": "+chown", "<-capability:…>": "-chown"}
            filled = form.replace(value, sample.get(value, "x")) if value[:1] == "<" else form
            arguments = filled.split(maxsplit=1) if name[:2] == "-o" else [filled]
            if row.verdict is Verdict.REFUSED:
                with pytest.raises(InvalidArgumentError, match=re.escape(row.why)):
                    read(arguments)
                continue
            given = read(arguments)
            assert bool(given.notes) == (row.verdict is Verdict.ACCEPTED), form
            if row.sets not in (Sets.NOTHING, Sets.SHARE):
                assert row.sets in given.settings, form


def test_the_document_follows_from_the_table() -> None:
    assert (REPOSITORY / "docs/virtiofsd.md").read_text() == document(), "run `make schemas`"


def test_some_line_of_each_program_starts() -> None:
    started = {line.program for line in LINES if outcome(line).startswith("starts")}
    assert started == {"libvirt", "Kata", "Incus", "microvm.nix", "virtme-ng"}
