"""A device that the configuration switches off is refused, whoever asks for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from services.handshake import events
from services.handshake.errors import FailedPreconditionError
from services.vm_owner.guest_devices import DeviceSpec
from services.vm_owner.shares import ShareSpec

if TYPE_CHECKING:
    from pathlib import Path

    from tests.support.owner_peers import Rig

FS, NET = events.FS, events.NET


@pytest.mark.parametrize(
    ("wslconfig", "refused"),
    [
        ("", {}),
        ("[wsl2]\nnetworkingMode=consomme\n", {}),
        ("[wsl2]\nvirtio=false\n", {FS: "VIRTIO_OFF", NET: "VIRTIO_OFF"}),
        ("[wsl2]\nsafeMode=true\n", {FS: "VIRTIO_OFF", NET: "VIRTIO_OFF"}),
        ("[wsl2]\nvirtiofs=false\n", {FS: "VIRTIOFS_OFF"}),
        ("[wsl2]\nhostFileSystemAccess=false\n", {FS: "VIRTIOFS_OFF"}),
        ("[wsl2]\nnetworkingMode=nat\n", {}),
        ("[wsl2]\nnetworkingMode=none\n", {NET: "NETWORKING_MODE"}),
        ("[wsl2]\nnetworkingMode=mirrored\n", {NET: "NETWORKING_MODE"}),
    ],
)
async def test_the_devices_of_a_configuration(
    rig: Rig, tmp_path: Path, wslconfig: str, refused: dict[str, str]
) -> None:
    vm = await rig.owner.create(rig.vm_spec(wslconfig=wslconfig))
    added = {
        "share": (FS, rig.owner.add_share(vm.vm_id, ShareSpec(str(tmp_path), "share"))),
        "fs": (FS, rig.owner.add_device(vm.vm_id, DeviceSpec(FS, "fs", "", str(tmp_path)))),
        "net": (NET, rig.owner.add_device(vm.vm_id, DeviceSpec(NET, "net", "", "tap0"))),
    }
    rig.script.journal.clear()
    for device_class, adding in added.values():
        if device_class not in refused:
            await adding
            continue
        with pytest.raises(FailedPreconditionError) as failed:
            await adding
        assert failed.value.reason == refused[device_class]
        assert failed.value.metadata["vm_id"] == vm.vm_id
    tags = [tag for tag, (device_class, _) in added.items() if device_class not in refused]
    assert [device.spec.tag for device in vm.devices.all()] == tags
    assert rig.script.calls().count("CreateDevice") == len(tags)
