"""The fuzz targets: how each is built, and how it is run.

The targets of the native fast path are C programs (native/fuzz) with clang's libFuzzer,
AddressSanitizer and UndefinedBehaviorSanitizer. Must not know what a target tests.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

ROOT: Final = Path(__file__).resolve().parents[2]
NATIVE: Final = ROOT / "native"
BUILD: Final = ROOT / "build" / "fuzz"

_FLAGS: Final = (
    *(f"@{ROOT / 'compile_flags.txt'}", "-Werror", "-O1", "-g", "-fno-omit-frame-pointer"),
    *("-fsanitize=fuzzer,address,undefined", "-fno-sanitize-recover=all"),
)


@dataclass(frozen=True)
class Target:
    """One program that takes inputs.

    Attributes:
        name: Its name; its corpus and its regressions have the same.
        sources: Its files in native/fuzz; none for the target that is in Python.
        defines: Macro definitions for the compiler.
        borrows: The target whose corpus it uses; empty: it has its own.
        needs_root: Whether it makes a mount namespace.
        repeats: How often a kept input is run, because a race does not show each time.
    """

    name: str
    sources: tuple[str, ...] = ()
    defines: tuple[str, ...] = ()
    borrows: str = ""
    needs_root: bool = False
    repeats: int = 1

    @property
    def corpus(self) -> Path:
        """Directory of the inputs that together reach the most code."""
        return NATIVE / "fuzz" / "corpus" / (self.borrows or self.name)

    @property
    def regressions(self) -> Path:
        """Directory of the inputs that once found a fault."""
        return NATIVE / "fuzz" / "regressions" / self.name

    def inputs(self) -> list[Path]:
        """Return all kept inputs."""
        return [path for kept in (self.corpus, self.regressions) for path in sorted(kept.glob("*"))]

    def build(self) -> list[str]:
        """Build the target; return the command that starts it.

        Raises:
            RuntimeError: There is no clang, or it cannot build the target.
        """
        if not self.sources:
            return [sys.executable, "-m", "tests.fuzz.guided"]
        compiler = clang()
        if compiler is None:
            raise RuntimeError(
                "no clang was found; install it (Debian: clang-14 libclang-rt-14-dev), or name "
                "one in FUZZ_CC"
            )
        BUILD.mkdir(parents=True, exist_ok=True)
        program = BUILD / f"{self.name}.bin"
        sources = [*(NATIVE / "fuzz" / name for name in self.sources), *sorted(NATIVE.glob("*.c"))]
        command = [compiler, *_FLAGS, *self.defines, "-o", str(program), *map(str, sources)]
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        if result.returncode:
            raise RuntimeError(f"{compiler} cannot build {self.name}:\n{result.stderr}")
        return [str(program)]

    def run(self, command: list[str], *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run the target in a directory of its own, where it may write."""
        place = BUILD / self.name
        place.mkdir(parents=True, exist_ok=True)
        return subprocess.run(
            [*command, *arguments],
            cwd=place,
            env={**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(place)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
        )


_MEMORY: Final = ("guest_ring.c", "guest_memory.c", "mutator.c")
_RING: Final = ("ring.c", *_MEMORY)
_NET: Final = ("net.c", *_MEMORY)
_SERVE: Final = ("serve.c", "guest.c", "mutator.c", "requests.c", "share.c")
_MUTATING: Final = ("-DMUTATING",)

TARGETS: Final = (
    Target("ring", _RING),
    Target("ring_race", _RING, _MUTATING, borrows="ring", repeats=100),
    Target("net", _NET),
    Target("net_race", _NET, _MUTATING, borrows="net", repeats=20),
    Target("fuse", ("fuse.c", "requests.c", "share.c"), needs_root=True),
    Target("mount", ("mount.c", "share.c"), needs_root=True, repeats=1000),
    Target("serve", _SERVE, needs_root=True),
    Target("serve_race", _SERVE, _MUTATING, borrows="serve", needs_root=True, repeats=10),
    Target("vhost_user"),
)


def clang() -> str | None:
    """Return the compiler; None: there is none."""
    return os.environ.get("FUZZ_CC") or shutil.which("clang") or shutil.which("clang-14")
