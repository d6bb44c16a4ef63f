"""What the part `net` reads, counts and compares."""

from __future__ import annotations

import json

import pytest

from bench.cases import Size
from bench.net import peers, profiles, report
from bench.net.cases import Direction, Load, NetCase, matrix
from bench.net.loads import read_net_load, read_ping, read_tcp, read_udp, stalled_s, whole_seconds
from bench.net.namespaces import NetworkError
from bench.net.results import (
    ENDS,
    IDLE,
    OTHERS,
    NetCaseResult,
    NetProfile,
    NetRound,
    NetRow,
    NetShare,
    Work,
)
from bench.verdicts import net_goals

TCP_UP = NetCase(load=Load.TCP, bytes=1 << 17)
CPU = {"host_total": 50.0, "remote_total": 25.0}


def result(*rows: tuple[str, list[NetRound]], case: NetCase = TCP_UP) -> NetCaseResult:
    return NetCaseResult(case=case, rows=[NetRow(name=name, rounds=found) for name, found in rows])


@pytest.mark.parametrize("size", list(Size))
def test_names_are_unique(size: Size) -> None:
    names = [case.name for case in matrix(size)]
    assert len(names) == len(set(names))


def test_the_full_matrix_has_what_is_compared() -> None:
    cases = matrix(Size.FULL)
    tcp = {(case.direction, case.streams) for case in cases if case.load is Load.TCP}
    assert tcp == {(direction, streams) for direction in Direction for streams in (1, 4)}
    udp = {(case.direction, case.bytes) for case in cases if case.load is Load.UDP}
    assert udp == {(direction, size) for direction in Direction for size in (64, 1400)}
    assert {case.load for case in cases} == set(Load)


def tcp_text(arrived: list[int]) -> str:
    end = {
        "sum_sent": {"retransmits": 7},
        "sum_received": {"bits_per_second": 8e9, "bytes": 2_000_000_000, "seconds": 2.0},
        "cpu_utilization_percent": CPU,
    }
    intervals = [{"sum": {"bytes": each}} for each in arrived]
    return json.dumps({"intervals": intervals, "end": end})


def test_a_tcp_stream_has_what_arrived() -> None:
    found = read_tcp(tcp_text([10, 100, 100, 100]))
    assert (found.rate, found.bits, found.retransmits) == (8.0, 16e9, 7)
    assert found.stalled_s == 0
    assert found.ends_cpu_s == pytest.approx(1.5)


@pytest.mark.parametrize(
    ("arrived", "stalled"),
    [
        ([100, 100, 100, 100], 0.0),
        ([0, 100, 100, 100, 0], 0.0),  # the beginning, and what is left of an interval
        ([100, 100, 0, 100, 100], 0.1),
        ([100, 100, 9, 0, 100, 100, 100, 100], 0.2),
        ([100, 100, 11, 100, 100], 0.0),  # slow, and not stalled
        # What passt does when a receiver takes less than it has offered.
        ([402, 0, 26, 0, 0, 0, 26, 0, 0, 0], 0.8),
        ([0, 0, 0, 0], 0.2),
        ([100], 0.0),
        ([], 0.0),
    ],
)
def test_a_stall_is_an_interval_in_which_hardly_anything_arrives(
    arrived: list[int], stalled: float
) -> None:
    assert stalled_s(arrived) == stalled


def test_datagrams_count_where_they_arrive() -> None:
    total = {"packets": 1000, "lost_packets": 750, "seconds": 0.5, "bytes": 64_000}
    found = read_udp(json.dumps({"end": {"sum": total, "cpu_utilization_percent": CPU}}))
    assert (found.rate, found.loss, found.bits) == (500.0, 0.75, 8 * 16_000)


@pytest.mark.parametrize("text", ['{"error": "unable to connect"}', '{"end": {}}'])
def test_a_failed_iperf3_has_no_figures(text: str) -> None:
    with pytest.raises(NetworkError, match="iperf3"):
        read_tcp(text)


def test_echoes_have_times_and_a_loss() -> None:
    line = "64 bytes from 192.0.2.1: icmp_seq=1 ttl=64 time={} ms\n"
    found = read_ping("".join(line.format(ms) for ms in ("0.010", "0.020", "0.030")), 4)
    assert (found.p50_us, found.loss) == (20.0, 0.25)
    assert found.rate == pytest.approx(50_000)
    with pytest.raises(NetworkError, match="no echo"):
        read_ping("PING 192.0.2.1\n", 4)


def test_requests_have_a_rate() -> None:
    figures = {"ops": 500, "seconds": 0.5, "p50_ns": 2000, "p99_ns": 9000}
    found = read_net_load(json.dumps(figures))
    assert (found.rate, found.p50_us, found.p99_us) == (1000.0, 2.0, 9.0)
    with pytest.raises(NetworkError, match="no request"):
        read_net_load(json.dumps({**figures, "ops": 0}))


def test_a_ratio_leaves_out_rounds_that_stalled_or_failed() -> None:
    compared = result(
        ("a", [NetRound(rate=2), NetRound(rate=9, stalled_s=0.1), NetRound(rate=6)]),
        ("b", [NetRound(rate=1), NetRound(rate=1), NetRound(failure="no answer")]),
    )
    ratio = compared.ratio("a", "b")
    assert ratio is not None
    assert (ratio.p10, ratio.median, ratio.p90) == (2, 2, 2)
    assert compared.ratio("a", "c") is None


def test_a_network_that_never_carried_anything_has_no_ratio() -> None:
    failed = [NetRound(failure="no answer")]
    assert result(("a", failed), ("b", [NetRound(rate=1)])).ratio("a", "b") is None
    assert result(("a", [NetRound(rate=1)]), ("b", failed)).ratio("a", "b") is None


def test_the_report_tells_stalled_and_slow_rounds_apart() -> None:
    rounds = [NetRound(rate=8), NetRound(rate=1, stalled_s=0.4), NetRound(failure="no answer")]
    written = "\n".join(report.sections([result(("a", rounds))], 2.0))
    assert "Medians over the rounds: 3 of 2 s each." in written
    assert "| TCP up, 1 stream | 8.00 Gbit/s (1 stalled, 1 failed of 3) |" in written
    assert "| TCP up, 1 stream | 0, 0, failed |" in written
    assert report.sections([], 2.0) == []


@pytest.mark.parametrize(("wanted", "whole"), [(0.1, 1), (1.0, 1), (2.4, 2)])
def test_no_measurement_is_without_end(wanted: float, whole: int) -> None:
    # iperf3 takes a fraction of a second for 0, which is no end.
    assert whole_seconds(wanted) == whole


def test_a_case_in_which_every_round_failed_is_written_down() -> None:
    failed = [NetRound(failure="no answer")]
    assert "(1 failed of 1)" in "\n".join(report.case_lines(result(("a", failed))))


def test_a_peer_that_is_not_there_says_what_to_install() -> None:
    nothing = peers.Peer("x", 1500, peers.VETH.start, (("no-such-program", "its package"),))
    assert nothing.missing == "its package"
    assert peers.VETH.missing == ""


def judged(**rates: float) -> dict[str, bool]:
    """Judge one TCP stream up, with these rates; return whether each goal was missed."""
    rows = [(name.replace("_", " "), [NetRound(rate=rate)]) for name, rate in rates.items()]
    found = net_goals([result(*rows)])
    return {goal.name: bool(goal.misses()) for goal in found if goal.findings}


def test_a_tap_is_held_against_veth() -> None:
    name = "tap, one TCP stream up, to veth"
    assert judged(tap=5.9, veth=10) == {name: True}
    assert judged(tap=6.1, veth=10) == {name: False}


def test_a_user_mode_network_is_held_against_others_of_its_round() -> None:
    (name,) = (key for key in judged(user=14, slirp4netns=10))
    assert judged(user=14, slirp4netns=10) == {name: True}
    assert judged(user=16, slirp4netns=10) == {name: False}


@pytest.mark.parametrize("bad", [NetRound(rate=9, stalled_s=0.5), NetRound(failure="no answer")])
def test_a_network_of_ours_without_a_round_that_counts_misses_its_goals(bad: NetRound) -> None:
    good = NetRound(rate=1, p50_us=1, p99_us=1)
    for case in (TCP_UP, NetCase(load=Load.ECHO)):
        found = net_goals([result(("user", [bad]), ("slirp4netns", [good]), case=case)])
        missed = [bool(goal.misses()) for goal in found if goal.findings]
        assert missed
        assert all(missed)


def test_a_peer_without_a_round_that_counts_is_compared_with_nothing() -> None:
    bad = [NetRound(rate=0.1, stalled_s=0.8)]
    found = net_goals([result(("user", [NetRound(rate=9)]), ("slirp4netns", bad))])
    assert not any(goal.findings for goal in found)


def test_times_must_be_short() -> None:
    case = NetCase(load=Load.ECHO)
    rows = {
        "user": NetRound(rate=1, p50_us=30, p99_us=90),
        "slirp4netns": NetRound(rate=1, p50_us=20, p99_us=30),
    }
    found = net_goals([result(*((name, [each]) for name, each in rows.items()), case=case)])
    missed = [bool(goal.misses()) for goal in found if goal.findings]
    assert missed == [False, True]  # 1.5 times at the median; 3 times at the 99th percentile


def test_a_missed_goal_names_the_networks_to_sample() -> None:
    rows = (("tap", [NetRound(rate=5)]), ("veth", [NetRound(rate=10)]))
    (goal,) = (goal for goal in net_goals([result(*rows)]) if goal.misses())
    assert [(each.program, each.baseline) for each in goal.misses()] == [("tap", "veth")]


SAMPLES = """
# Overhead|Pid:Command|Shared Object|Symbol
 20.00%|   10:porthole|[kernel.kallsyms]|[k] rep_movs_alternative
 10.00%|   10:porthole|[kernel.kallsyms]|[k] _copy_to_iter
  5.00%|   10:porthole|libfastpath.so|[.] ph_net_receive
  4.00%|   11:passt.avx2|[kernel.kallsyms]|[k] entry_SYSCALL_64_after_hwframe
  3.00%|   12:net_front_end|[kernel.kallsyms]|[k] _raw_spin_unlock_irqrestore
  2.00%|   90:iperf3|[kernel.kallsyms]|[k] tcp_sendmsg_locked
  1.00%|   91:iperf3|[kernel.kallsyms]|[k] skb_release_data
  1.50%|   91:iperf3|[kernel.kallsyms]|[k] kmem_cache_free
 30.00%|    0:swapper|[kernel.kallsyms]|[k] pv_native_safe_halt
  0.50%|   77:sshd|libc.so.6|[.] memcpy
"""


def test_samples_are_told_apart_by_program_and_kind_of_work() -> None:
    names = {10: profiles.DEVICE, 11: "passt", 12: profiles.DRIVER}
    found = {(each.program, each.work): each.percent for each in profiles.parse(SAMPLES, names)}
    assert found == {
        (profiles.DEVICE, Work.COPIES): 30.0,
        (profiles.DEVICE, Work.OWN): 5.0,
        ("passt", Work.CALLS): 4.0,
        (profiles.DRIVER, Work.WAITING): 3.0,
        (ENDS, Work.NETWORK): 3.0,
        (ENDS, Work.MEMORY): 1.5,
        (IDLE, Work.WAITING): 30.0,
        (OTHERS, Work.OWN): 0.5,
    }


def test_a_profile_is_a_table_of_programs_and_kinds_of_work() -> None:
    shares = [
        NetShare(program=IDLE, work=Work.WAITING, percent=30.0),
        NetShare(program="passt", work=Work.COPIES, percent=12.34),
        NetShare(program="passt", work=Work.OWN, percent=1.0),
    ]
    found = NetProfile(case="TCP up, 1 stream", network="user", shares=shares)
    written = report.profile_sections([found])
    assert "TCP up, 1 stream, user:" in written
    assert written[-2:] == [
        "| passt | 12.3 |  |  |  |  | 1.0 | 13.3 |",
        "| idle |  |  | 30.0 |  |  |  | 30.0 |",
    ]
    assert report.profile_sections([]) == []
