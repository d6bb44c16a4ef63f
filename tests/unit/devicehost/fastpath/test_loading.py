"""A library is used only if all that it and Python declare is the same."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path

import pytest

from services.devicehost import fastpath

ROOT = Path(__file__).resolve().parents[4]

needs_compiler = pytest.mark.skipif(shutil.which("cc") is None, reason="there is no C compiler")


@pytest.fixture(autouse=True)
def switched_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(fastpath.SWITCH, raising=False)


def changed_library(place: Path, *changes: tuple[str, str]) -> Path:
    """Build the library from sources in which these patterns were replaced."""
    made = dict.fromkeys(changes, 0)
    for source in sorted((ROOT / "native").glob("*.[ch]")):
        text = source.read_text()
        for pattern, replacement in changes:
            text, count = re.subn(pattern, replacement, text)
            made[pattern, replacement] += count
        (place / source.name).write_text(text)
    assert all(made.values()), made
    library = place / "libfastpath.so"
    flags = (f"@{ROOT / 'compile_flags.txt'}", "-w", "-fPIC", "-shared", "-o", str(library))
    subprocess.run(["cc", *flags, *map(str, sorted(place.glob("*.c")))], check=True)
    return library


@needs_compiler
def test_the_library_of_these_sources_is_used(tmp_path: Path) -> None:
    library, status = fastpath.load(changed_library(tmp_path))
    assert library is not None
    assert status == fastpath.ACTIVE


FIELD = r"    FIELD\(ph_python_pin, kind\),\n"
REFUSED = {
    "a field elsewhere": (
        [(r"(uint32_t valid_s;.*\n)(\s*uint32_t open_flags;.*\n)", r"\2\1")],
        "field valid_s of struct ph_rules is 4 bytes at offset 28 in the library and 4 bytes at "
        "offset 24 in Python",
    ),
    "a field of another size": (
        [(r"int32_t node_fd;", "int64_t node_fd;")],
        "field node_fd of struct ph_python_pin is 8 bytes at offset 32 in the library and 4 bytes "
        "at offset 28 in Python",
    ),
    "a structure of another size": (
        [(r"(uint64_t spin_ns;)", r"\1 uint64_t fresh;")],
        "struct ph_queue_state is 40 bytes in the library and 32 bytes in Python",
    ),
    "a field less": ([(FIELD, "")], "the library has no field kind of struct ph_python_pin"),
    "a field more": (
        [
            (r"(uint32_t is_submount;.*\n)(\};)", r"\1uint8_t fresh[0];\n\2"),
            (FIELD, r"\g<0>FIELD(ph_python_pin, fresh),"),
        ],
        "Python has no field fresh of struct ph_python_pin",
    ),
    "a structure less": (
        [(r"    (WHOLE|FIELD)\(ph_counters\b.*\n", "")],
        "the library has no field requests of struct ph_counters",
    ),
    "a structure more": (
        [(r"    WHOLE\(ph_span\),", r"\g<0> WHOLE(fuse_in_header),")],
        "Python has no struct fuse_in_header",
    ),
    "a constant of another value": (
        [(r"(define PH_SLOT_SHIFT) 44", r"\1 45")],
        "constant PH_SLOT_SHIFT is 45 in the library and 44 in Python",
    ),
    "an enumerator of another value": (
        [(r"PH_DIRECTORY = 2", "PH_DIRECTORY = 3")],
        "constant PH_DIRECTORY is 3 in the library and 2 in Python",
    ),
    "a constant less": (
        [(r"CONSTANT\(PH_KEEP_ID\),", "")],
        "the library has no constant PH_KEEP_ID",
    ),
    "a constant more": (
        [
            (r"CONSTANT\(PH_KEEP_ID\),", r"\g<0> CONSTANT(EOF),"),
            (r"#include <stddef.h>", r"\g<0>\n#include <stdio.h>"),
        ],
        "Python has no constant EOF",
    ),
    "another result": (
        [
            (r"uint64_t ph_mount_node_count", "int ph_mount_node_count"),
            (r"ph_mount_node_count, uint64_t", "ph_mount_node_count, int"),
        ],
        "function ph_mount_node_count is int32_t(void *) in the library and uint64_t(void *) in "
        "Python",
    ),
    "another argument": (
        [
            (r"(ph_queue_set_wake\(struct ph_queue \*queue,) int", r"\1 int64_t"),
            (r"(ph_queue_set_wake, void, struct ph_queue \*,) int", r"\1 int64_t"),
        ],
        "function ph_queue_set_wake is void(void *, int64_t) in the library and void(void *, "
        "int32_t) in Python",
    ),
    "another structure as an argument": (
        [
            (r"(ph_queue_new\(const struct) ph_queue_setup \*setup\);", r"\1 ph_chain *chain);"),
            (
                r"(ph_queue_new\(const struct) ph_queue_setup \*setup\)\n\{",
                r"\1 ph_chain *chain)\n{ const struct ph_queue_setup *setup = (const void *)chain;",
            ),
            (r"(ph_queue_new, struct ph_queue \*, const struct) ph_queue_setup", r"\1 ph_chain"),
        ],
        "function ph_queue_new is void *(struct ph_chain *) in the library and void *(struct "
        "ph_queue_setup *) in Python",
    ),
    "a function less": (
        [(r"    LIST\(ph_worker_new,.*\n", "")],
        "the library has no function ph_worker_new",
    ),
    "a function more": (
        [
            (
                r"    LIST\(ph_worker_new,",
                r"    LIST(ph_open_file_fd, int, const struct ph_open_file *)\\\n\g<0>",
            )
        ],
        "Python has no function ph_open_file_fd",
    ),
}


@needs_compiler
@pytest.mark.parametrize("case", REFUSED)
def test_a_library_that_differs_is_refused_by_name(
    case: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    changes, what = REFUSED[case]
    library, status = fastpath.load(changed_library(tmp_path, *changes))
    assert library is None
    assert status == f"unusable: {what}; build it again: make setup"
    assert what in caplog.text


@needs_compiler
def test_a_library_without_tables_is_refused(tmp_path: Path) -> None:
    """So is one of a time when there were none."""
    library, status = fastpath.load(changed_library(tmp_path, (r"\bph_layouts\b", "ph_abi")))
    assert library is None
    assert status.startswith("unusable: ")
    assert status.endswith("undefined symbol: ph_layouts; build it again: make setup")


def test_what_is_no_library_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "libfastpath.so"
    path.write_bytes(b"no ELF header")
    library, status = fastpath.load(path)
    assert library is None
    assert status.startswith(f"unusable: {path}: ")


def test_no_library_is_needed(tmp_path: Path) -> None:
    library, status = fastpath.load(tmp_path / "libfastpath.so")
    assert library is None
    assert status.startswith("absent: ")


def test_the_library_may_be_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(fastpath.SWITCH, "0")
    library, status = fastpath.load(tmp_path / "libfastpath.so")
    assert library is None
    assert status == "off: PORTHOLE_NATIVE is 0"
