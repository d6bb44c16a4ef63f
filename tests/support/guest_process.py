"""A guest init process over a directory that a test publishes in."""

from __future__ import annotations

import asyncio
import sys
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

VM_ID = "11111111-2222-4333-8444-555555555555"
TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
TRACEPARENT = f"00-{TRACE_ID}-b7ad6b7169203331-01"
RELEASE = "6.18.26.3-microsoft-standard-WSL2"


def publish(run_dir: Path, base: str = "0x3c000000\n", size: str = "67108864\n") -> None:
    """Publish a pool as a kernel does."""
    (run_dir / "sys").mkdir(exist_ok=True)
    (run_dir / "sys" / "swiotlb_base").write_text(base)
    (run_dir / "sys" / "swiotlb_size").write_text(size)


@asynccontextmanager
async def guest_init(run_dir: Path, *flags: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """Guest init on <run_dir>/guest-init.sock; its ready line has been read."""
    (run_dir / "cmdline").write_text(
        f"swiotlb=force porthole.vm_id={VM_ID} porthole.traceparent={TRACEPARENT}\n"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "services.guest_init"),
        *(f"--publish-dir={run_dir}/sys", f"--cmdline-file={run_dir}/cmdline"),
        *(f"--kernel-release={RELEASE}", f"--listen=unix:{run_dir}/guest-init.sock"),
        *(f"--trace-file={run_dir}/guest.jsonl", *flags),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(30):
            assert b"ready on" in await process.stdout.readline()
            yield process
    finally:
        if process.returncode is None:
            process.terminate()
        await process.communicate()
