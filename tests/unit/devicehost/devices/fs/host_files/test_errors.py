"""The errno that a guest gets for each kind of failure."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest

from services.devicehost.devices.fs.host_files.errors import errno_of, refusal

if TYPE_CHECKING:
    from pathlib import Path


def test_a_refusal_reads_like_the_error_of_a_system_call(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as failed:
        (tmp_path / "absent").stat()
    made = refusal(errno.ENOENT)
    assert type(made) is type(failed.value)
    assert (made.errno, made.strerror) == (failed.value.errno, failed.value.strerror)


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (OSError(errno.ENOSPC, "full"), errno.ENOSPC),
        (OSError("without a number"), errno.EIO),
        (OverflowError("too large"), errno.EINVAL),
    ],
)
def test_every_error_has_a_number(error: OSError | OverflowError, number: int) -> None:
    assert errno_of(error) == number
