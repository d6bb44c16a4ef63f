"""What a Linux guest of the demonstration does, done here."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest

from services.cli.demo.in_guest import lines

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "pkg").mkdir(parents=True)
    (root / "pkg" / "a").write_text("a")
    (root / "pkg" / "a").chmod(0o750)
    (root / os.fsdecode(b"\xff")).write_bytes(b"\0" * 5000)
    (root / "link").symlink_to("pkg/a")
    (root / "foreign").mkdir()
    (root / "foreign" / "x").write_text("x")
    return root


def test_every_file_is_hashed_but_those_that_are_left_out(tree: Path) -> None:
    found = {
        bytes.fromhex(str(path)): rest for path, *rest in lines(["hash", str(tree), "foreign"])
    }
    assert found == {
        b"pkg/a": [1, hashlib.sha256(b"a").hexdigest()],
        b"\xff": [5000, hashlib.sha256(b"\0" * 5000).hexdigest()],
    }


def test_a_copy_goes_to_a_directory_that_is_there(tree: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    assert list(lines(["copy", str(tree), str(target), "foreign"])) == [[1, 2, 1, 5001]]
    assert (target / "pkg" / "a").stat().st_mode & 0o777 == 0o750
    assert (target / "link").readlink() == (tree / "link").readlink()
    assert not (target / "foreign").exists()


def test_a_url_is_fetched(tree: Path) -> None:
    handler = partial(SimpleHTTPRequestHandler, directory=str(tree))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        url = f"http://127.0.0.1:{server.server_address[1]}/pkg/a"
        assert list(lines(["get", url, "5"])) == [[200, 1, hashlib.sha256(b"a").hexdigest()]]
        server.shutdown()
        thread.join()


@pytest.mark.root
def test_this_machine_answers_a_ping() -> None:
    [[sent, received, median_s]] = lines(["ping", "127.0.0.1", "3", "5"])
    assert (sent, received) == (3, 3)
    assert isinstance(median_s, float)
    assert 0 < median_s < 5


def test_the_program_prints_its_lines_and_fails_with_words(tree: Path) -> None:
    program = (sys.executable, "-m", "services.cli.demo.in_guest")
    done = subprocess.run(
        [*program, "hash", str(tree / "pkg")], capture_output=True, text=True, check=True
    )
    assert done.stdout == f'["61", 1, "{hashlib.sha256(b"a").hexdigest()}"]\n'
    failed = subprocess.run([*program, "dance"], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "are not among the words" in failed.stderr
