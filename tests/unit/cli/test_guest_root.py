"""The mounts that make the host's root that of a guest."""

from __future__ import annotations

from services.cli.guest_root import NEW_ROOT, root_mounts


def test_the_root_is_an_overlay_over_the_share_that_the_machine_has_mounted() -> None:
    memory, overlay, run = root_mounts()
    assert (memory.fs_type, memory.target) == ("tmpfs", "/overlay")
    assert (overlay.fs_type, overlay.target) == ("overlay", NEW_ROOT)
    assert overlay.options == "lowerdir=/mnt/root,upperdir=/overlay/upper,workdir=/overlay/work"
    assert overlay.directories == ("/overlay/upper", "/overlay/work")
    assert (run.fs_type, run.target) == ("tmpfs", f"{NEW_ROOT}/run")
