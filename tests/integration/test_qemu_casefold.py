"""Directories that fold case, on a kernel that has them: not every machine's is built with them.

The guest has this machine's root as a share, so it runs this very test suite there.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.support.qemu_guest import booted
from tests.support.standalone import fs, running

pytestmark = pytest.mark.qemu

PROJECT = Path(__file__).parents[2]
TESTS = "tests/unit/devicehost/devices/fs/share/test_name_case.py"
ENVIRONMENT = "PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/run TMPDIR=/run PYTHONDONTWRITEBYTECODE=1"


def test_directories_fold_case_in_a_guest_that_runs_from_a_share(run_dir: Path) -> None:
    with running(*fs(run_dir, Path("/"), "--readonly", "--cache=always")) as device:
        chardev = ("-chardev", f"socket,id=c0,path={device.socket_path}")
        with booted(run_dir, *chardev, "-device", "vhost-user-fs-pci,chardev=c0,tag=root") as guest:
            guest.run("mount -t virtiofs root /mnt && mount -t tmpfs none /mnt/run")
            guest.run("for each in proc sys dev; do mount --bind /$each /mnt/$each; done")
            pytest_there = (
                f"{sys.executable} -m pytest {TESTS} -k folds_case -rs --color=no"
                " -p no:cacheprovider --basetemp=/run/tests"
            )
            said = guest.run(
                f"chroot /mnt env -i {ENVIRONMENT} sh -c 'cd {PROJECT} && exec {pytest_there} 2>&1'"
            )
            assert " passed" in said
            assert "folds case" not in said, "it was skipped"
            guest.power_off()
        code, log = device.end()
    assert code == 0, log
