"""Where all CPUs spend their time while a load runs: by program, and by kind of work.

Owns the command line of perf(1) for this, and which kind of work a symbol of the kernel belongs to.
Must not know goals.
"""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import TYPE_CHECKING, Final

from bench.net import loads
from bench.net.results import ENDS, IDLE, OTHERS, NetProfile, NetShare, Work
from bench.profiles import PERF, SAMPLES_PER_S

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bench.net.cases import NetCase
    from bench.net.peers import Network, Peer

DEVICE: Final = "our device"
DRIVER: Final = "front-end"
_PROGRAMS: Final = {"porthole": DEVICE, "net_front_end": DRIVER}
_END_PROGRAMS: Final = frozenset({"iperf3", "net_load", "ping"})
_IDLE_PROGRAM: Final = "swapper"

_SYMBOLS: Final = (
    (
        Work.COPIES,
        r"rep_movs_alternative|rep_stos_alternative|copy_user_\w+|_?_?copy_(to|from)_(iter|user)\w*"
        r"|_?copy_(page|data)\w*|memcpy\w*|__memcpy\w*|memmove|clear_page\w*|copyin|copyout"
        r"|skb_copy_\w+|csum_\w+|do_csum|__csum_\w+|simple_copy_\w+|__skb_datagram_iter",
    ),
    (
        Work.CALLS,
        r"entry_SYSCALL\w*|syscall_\w+|do_syscall_\w+|__x64_sys_\w+|x64_sys_call|__do_sys_\w+"
        r"|fdget\w*|__fget\w*|fput\w*|import_(iovec|ubuf|single)\w*|copy_iovec\w*|__import_iovec\w*"
        r"|copy_msghdr\w*|vfs_(read|write)v?|do_(readv|writev|iter_\w+)\w*|rw_verify_area"
        r"|security_\w+|\w*seccomp\w*|irqentry_\w+|exit_to_user\w*|\w*sysvec\w*|sys_\w+",
    ),
    (
        Work.WAITING,
        r".*(sched|wake|wait|poll|futex|eventfd|epoll|timer|ktime|runqueue|enqueue_task|"
        r"dequeue_task|update_curr|update_load|pick_|select_task|task_switch|switch_mm|switch_to|"
        r"place_entity|idle|yield|hrtick|rseq|cpu_util|preempt|resched).*|_raw_spin_unlock_irq\w*"
        r"|\w*(entity|_fair)|cpuacct\w*|pv_native_safe_halt|default_idle\w*",
    ),
    (
        Work.MEMORY,
        r".*(alloc|free|slab|kmem|page|folio|memcg|mem_cgroup|refill|charge|numa|mm_fault).*"
        r"|put_cpu_partial|___cache_\w+|handle_mm_\w+",
    ),
)
_KINDS: Final = tuple((work, re.compile(pattern)) for work, pattern in _SYMBOLS)


def record(case: NetCase, peer: Peer, seconds: float) -> NetProfile:
    """Run a load once more and sample all CPUs.

    Args:
        case: The load.
        peer: The network.
        seconds: Length of the load.

    Raises:
        NetworkError: The network does not start, or the load failed.
        CalledProcessError: perf failed.
    """
    with tempfile.TemporaryDirectory() as folder, peer.run() as network:
        data = Path(folder) / "samples"
        command = [PERF, "record", "-q", "-a", "-e", "cpu-clock", "-F", str(SAMPLES_PER_S)]
        sampler = subprocess.Popen([*command, "-o", str(data)], stdout=subprocess.DEVNULL)
        try:
            loads.run(case, network.namespaces, seconds)
            programs = _programs(network)
        finally:
            sampler.terminate()
            sampler.wait()
        shares = parse(_report(data), programs)
    return NetProfile(case=case.name, network=peer.name, shares=shares)


def parse(report: str, programs: Mapping[int, str]) -> list[NetShare]:
    """Read lines "  12.34%|  1234:name|module|[k] symbol" of perf; others are comments.

    Args:
        report: What it has printed.
        programs: Names of programs by the ids of their threads; others are known by what the
            threads are called.

    Returns:
        Shares of all samples, in percent, of each program and kind of work that was seen.
    """
    found: dict[tuple[str, Work], float] = defaultdict(float)
    for line in report.splitlines():
        parts = [part.strip() for part in line.split("|")]
        if len(parts) != 4 or not parts[0].endswith("%"):
            continue
        thread, _, name = parts[1].partition(":")
        program = programs.get(int(thread)) or _known(name)
        found[program, _work(parts[3])] += float(parts[0][:-1])
    return [
        NetShare(program=program, work=work, percent=round(percent, 2))
        for (program, work), percent in found.items()
    ]


def _known(name: str) -> str:
    if name in _END_PROGRAMS:
        return ENDS
    return IDLE if name == _IDLE_PROGRAM else OTHERS


def _work(symbol: str) -> Work:
    level, _, name = symbol.partition("] ")
    if level != "[k":
        return Work.OWN
    return next((work for work, names in _KINDS if names.fullmatch(name)), Work.NETWORK)


def _programs(network: Network) -> dict[int, str]:
    found: dict[int, str] = {}
    for pid in (*network.device, *network.front_end):
        name = Path(f"/proc/{pid}/comm").read_text().strip()
        program = _PROGRAMS.get(name, name.partition(".")[0])
        found |= {int(task.name): program for task in Path(f"/proc/{pid}/task").iterdir()}
    return found


def _report(data: Path) -> str:
    # What perf calls "pid" is the id of a thread.
    fields = ["--stdio", "-F", "overhead,pid,dso,symbol", "-t", "|"]
    return subprocess.run(
        [PERF, "report", "-i", str(data), *fields],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PERF_PAGER": "cat"},
    ).stdout
