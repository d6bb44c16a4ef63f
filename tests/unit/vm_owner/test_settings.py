"""Settings of the owner: defaults and bounds."""

from __future__ import annotations

import pytest

from services.rpc.settings import load
from services.vm_owner.settings import OwnerSettings


def test_defaults() -> None:
    settings = load(OwnerSettings, ["--run-dir", "/tmp/ph"])
    assert settings.addresses == ("unix:/tmp/ph/owner.sock",)
    assert settings.devicehost_address == "unix:/tmp/ph/devicehost.sock"
    assert settings.elevated_devicehost is None
    assert str(settings.subnet_pool) == "10.231.0.0/16"


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--subnet-pool", "10.0.0.0/31"], "smaller than one adapter's subnet"),
        (["--subnet-pool", "many"], "--subnet-pool"),
        (["--devicehost", "nowhere"], "unix:/absolute/path"),
        (["--capabilities-deadline-s", "0"], "--capabilities-deadline-s"),
        (["--run-dir", "/tmp/" + "x" * 60], "guest-init.sock"),
        (["--colour", "red"], "--colour"),
    ],
)
def test_wrong_settings_are_one_line_and_exit_2(
    flags: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        load(OwnerSettings, flags)
    assert ended.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert words in lines[0]
