"""A device host process with any number of virtio-fs devices over one directory, without gRPC.

Owns the process: it prints the paths of the ready sockets as one line of JSON, and serves until its
standard input ends. Must not know the benchmark's cases.
"""

from __future__ import annotations

import argparse
import json
import sys
import uuid
from pathlib import Path

from services.devicehost.host import DeviceHost, DeviceSpec, FsBackend


def main() -> None:
    """Make the devices, each for a VM of its own, and serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument(
        "--run-dir", type=Path, required=True, help="its folder dev gets the sockets"
    )
    parser.add_argument("--shared-dir", type=Path, required=True)
    parser.add_argument("--token", action="append", required=True, help="token; one per device")
    given = parser.parse_args()
    (given.run_dir / "dev").mkdir(parents=True, exist_ok=True)
    host = DeviceHost(given.run_dir, on_change=lambda info, why: None)
    sockets = []
    for number, token in enumerate(given.token):
        vm_id = str(uuid.uuid4())
        info = host.create_device(
            DeviceSpec(
                vm_id=vm_id,
                instance_id=f"fs{number}",
                tag="bench",
                options=f"bench;{token};vm_id={vm_id}",
                backend=FsBackend(str(given.shared_dir)),
            ),
            emit=lambda event: None,
        )
        sockets.append(str(info.socket_path))
    print(json.dumps({"sockets": sockets}), flush=True)
    sys.stdin.read()
    host.close()


if __name__ == "__main__":
    main()
