"""mini_init from the host: answers, deadlines, and guests that do not keep to the protocol."""

from __future__ import annotations

import asyncio
import errno
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st
from porthole.guest.v1 import guest_control_pb2, mini_init_pb2

from services.guest_init.channel import mini_init as module
from services.guest_init.channel.frames import MESSAGE_LIMIT_BYTES, frame
from services.guest_init.channel.mini_init import MiniInit
from services.guest_init.channel.run import WINDOW_BYTES
from services.guest_init.listeners import MAX_LISTENERS, Listener
from services.handshake.errors import (
    DeadlineExceededError,
    FailedPreconditionError,
    InvalidArgumentError,
    UnavailableError,
)
from tests.support.fake_mini_init import (
    FakeMiniInit,
    done,
    ended,
    everything_done,
    failure,
    fake_mini_init,
    hello,
    output,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from services.guest_init.channel.run import Run

COMMAND = guest_control_pb2.Command(arguments=[b"/bin/true"])


def unmount(target: bytes = b"/mnt") -> mini_init_pb2.ToMiniInit:
    return mini_init_pb2.ToMiniInit(unmount=guest_control_pb2.UnmountRequest(target=target))


@asynccontextmanager
async def linked(run_dir: Path) -> AsyncIterator[tuple[FakeMiniInit, MiniInit]]:
    path = run_dir / "init.sock"
    mini_init = MiniInit(path)
    async with fake_mini_init(path) as guest:
        mini_init.start()
        try:
            async with asyncio.timeout(30):
                yield guest, mini_init
        finally:
            await mini_init.close()


async def started(guest: FakeMiniInit, mini_init: MiniInit) -> tuple[int, Run]:
    """A command that runs until its test ends it."""

    def answer(message: mini_init_pb2.ToMiniInit) -> list[mini_init_pb2.FromMiniInit]:
        if message.WhichOneof("message") == "run":
            return [done(message.request_id)]
        return everything_done(message)

    guest.answer = answer
    run = await mini_init.run(COMMAND)
    return run.run_id, run


NUMBERS = st.sampled_from([0, 1, 2, (1 << 32) - 1])
SAID = st.one_of(
    st.binary(max_size=60),
    st.builds(done, NUMBERS).map(lambda said: said.SerializeToString()),
    st.builds(hello, NUMBERS).map(lambda said: said.SerializeToString()),
    st.builds(failure, NUMBERS, NUMBERS, st.text(max_size=20)).map(
        lambda said: said.SerializeToString()
    ),
    st.builds(output, NUMBERS, st.binary(max_size=20)).map(lambda said: said.SerializeToString()),
    st.builds(ended, NUMBERS, NUMBERS).map(lambda said: said.SerializeToString()),
)


@given(st.lists(SAID, max_size=20))
def test_whatever_a_guest_says_is_survived(said: list[bytes]) -> None:
    mini_init = MiniInit(Path("nowhere"))
    for message in said:
        mini_init.link_message(message)
    mini_init.link_down()


async def test_a_request_is_answered(run_dir: Path) -> None:
    async with linked(run_dir) as (guest, mini_init):
        await mini_init.request(unmount())
        assert (await guest.next("unmount")).unmount.target == b"/mnt"


async def test_it_waits_for_a_guest_that_is_not_there_yet(run_dir: Path) -> None:
    path = run_dir / "init.sock"
    mini_init = MiniInit(path)
    mini_init.start()
    asking = asyncio.create_task(mini_init.greet(20))
    await asyncio.sleep(0.1)
    async with fake_mini_init(path):
        assert (await asking).hello.capabilities.kernel_release == "6.12.95-porthole"
        await mini_init.close()


async def test_a_refusal_has_the_errno_and_the_text(run_dir: Path) -> None:
    async with linked(run_dir) as (guest, mini_init):
        await mini_init.first_hello()
        guest.answer = lambda message: [
            failure(message.request_id, errno.EBUSY, "unmount of /mnt: busy" + "!" * 5000)
        ]
        with pytest.raises(FailedPreconditionError, match="unmount of /mnt: busy") as refused:
            await mini_init.request(unmount())
        assert refused.value.reason == "GUEST_REQUEST_REFUSED"
        assert refused.value.metadata == {"errno": "EBUSY"}
        assert len(refused.value.message) < 600


async def test_a_guest_that_never_answers_is_given_up(
    run_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "REQUEST_DEADLINE_S", 0.2)
    async with linked(run_dir) as (guest, mini_init):
        await mini_init.first_hello()
        guest.answer = lambda _: []
        with pytest.raises(DeadlineExceededError, match=r"within 0\.2 s"):
            await mini_init.request(unmount())
        with pytest.raises(DeadlineExceededError):
            await mini_init.run(COMMAND)
        with pytest.raises(DeadlineExceededError):
            await mini_init.greet(0.2)
        guest.answer = everything_done
        await mini_init.request(unmount())


async def test_a_guest_that_never_says_hello_is_given_up(run_dir: Path) -> None:
    mini_init = MiniInit(run_dir / "nobody.sock")
    mini_init.start()
    with pytest.raises(DeadlineExceededError) as silent:
        await mini_init.greet(0.1)
    assert silent.value.reason == "GUEST_SILENT"
    await mini_init.close()


async def test_answers_that_nobody_waits_for_are_ignored(run_dir: Path) -> None:
    async with linked(run_dir) as (guest, mini_init):
        await mini_init.first_hello()
        guest.answer = lambda message: [done(message.request_id)] * 3 + [done(77), hello(78)]
        for _ in range(3):
            await mini_init.request(unmount())
        guest.say(output(5, b"x" * 1000), ended(6, 0), mini_init_pb2.FromMiniInit(request_id=5))
        guest.say(mini_init_pb2.FromMiniInit(credit=mini_init_pb2.InputCredit(run_id=9, bytes=9)))
        await mini_init.request(unmount())


async def test_garbage_is_ignored(run_dir: Path) -> None:
    async with linked(run_dir) as (guest, mini_init):
        await mini_init.first_hello()
        guest.say_bytes(b"\0PHIP\xff" * 5000 + frame(b"\xff" * 40) + b"PHI1\xff\xff\xff\xff")
        await mini_init.request(unmount())


async def test_a_lost_connection_fails_what_is_under_way(run_dir: Path) -> None:
    async with linked(run_dir) as (guest, mini_init):
        _, run = await started(guest, mini_init)
        guest.answer = lambda _: []
        waiting = asyncio.create_task(mini_init.request(unmount()))
        await guest.next("unmount")
        guest.hang_up()
        with pytest.raises(UnavailableError) as lost:
            await waiting
        assert lost.value.reason == "GUEST_UNREACHABLE"
        with pytest.raises(UnavailableError):
            await anext(run.responses())
        guest.answer = everything_done
        await mini_init.request(unmount())  # the link was made again


async def test_a_guest_that_starts_anew_has_forgotten_everything(run_dir: Path) -> None:
    async with linked(run_dir) as (guest, mini_init):
        _, run = await started(guest, mini_init)
        guest.answer = lambda _: []
        waiting = asyncio.create_task(mini_init.request(unmount()))
        await guest.next("unmount")
        guest.say(hello())
        with pytest.raises(UnavailableError):
            await waiting
        with pytest.raises(UnavailableError):
            await anext(run.responses())
        assert (await mini_init.first_hello()).hello.started_ns == 1_000_000_000


async def test_a_request_that_is_too_long_is_not_sent(run_dir: Path) -> None:
    async with linked(run_dir) as (_, mini_init):
        with pytest.raises(InvalidArgumentError, match=str(MESSAGE_LIMIT_BYTES)) as refused:
            await mini_init.request(unmount(b"/" * (MESSAGE_LIMIT_BYTES + 1)))
        assert refused.value.reason == "GUEST_REQUEST_FIELD"


async def test_output_comes_in_order_and_is_credited(run_dir: Path) -> None:
    async with linked(run_dir) as (guest, mini_init):
        run_id, run = await started(guest, mini_init)
        pieces = [bytes([number]) * 32768 for number in range(8)]
        guest.say(*(output(run_id, piece) for piece in pieces))
        responses = run.responses()
        for piece in pieces:
            assert (await anext(responses)).standard_output == piece
        guest.say(ended(run_id, 3))
        assert (await anext(responses)).ended.exit_code == 3
        with pytest.raises(StopAsyncIteration):
            await anext(responses)
        credited = 0
        while credited < sum(map(len, pieces)):
            credit = (await guest.next("credit")).credit
            assert (credit.run_id, credit.stream) == (run_id, mini_init_pb2.STREAM_STANDARD_OUTPUT)
            credited += credit.bytes
        assert credited == sum(map(len, pieces))


async def test_a_flood_of_output_ends_the_command(run_dir: Path) -> None:
    async with linked(run_dir) as (guest, mini_init):
        run_id, run = await started(guest, mini_init)
        for _ in range(200):
            guest.say(output(run_id, bytes(32768)))
        await mini_init.request(unmount())
        responses = run.responses()
        for _ in range(WINDOW_BYTES // 32768):
            assert (await anext(responses)).standard_output
        with pytest.raises(FailedPreconditionError) as broken:
            await anext(responses)
        assert broken.value.reason == "GUEST_ANSWER"


async def test_input_waits_for_credit(run_dir: Path) -> None:
    async with linked(run_dir) as (guest, mini_init):
        run_id, run = await started(guest, mini_init)
        writing = asyncio.create_task(run.write(bytes(WINDOW_BYTES + 1000)))
        for _ in range(WINDOW_BYTES // 32768):
            assert len((await guest.next("input")).input.standard_input) == 32768
        await asyncio.sleep(0.05)
        assert not writing.done()
        credit = mini_init_pb2.InputCredit(run_id=run_id, bytes=5000)
        guest.say(mini_init_pb2.FromMiniInit(credit=credit))
        assert len((await guest.next("input")).input.standard_input) == 1000
        await writing


async def test_input_of_a_command_that_has_ended_is_dropped(run_dir: Path) -> None:
    async with linked(run_dir) as (guest, mini_init):
        run_id, run = await started(guest, mini_init)
        guest.say(ended(run_id, 0))
        await run.write(bytes(10 * WINDOW_BYTES))


async def test_a_command_that_is_given_up_is_killed(run_dir: Path) -> None:
    async with linked(run_dir) as (guest, mini_init):
        run_id, run = await started(guest, mini_init)
        await mini_init.give_up(run)
        killed = (await guest.next("input")).input
        assert (killed.run_id, killed.signal) == (run_id, 9)
        guest.say(output(run_id, b"late"), ended(run_id, 0))
        await mini_init.request(unmount())


def listening(*ports: int) -> mini_init_pb2.FromMiniInit:
    said = mini_init_pb2.Listening(ipv4_ports=ports, ipv6_ports=ports[:1])
    return mini_init_pb2.FromMiniInit(listening=said)


async def test_ports_on_which_the_guest_listens_are_told_as_they_change(run_dir: Path) -> None:
    async with linked(run_dir) as (guest, mini_init):
        guest.answer = lambda message: (
            [done(message.request_id), listening(22)]
            if message.HasField("watch_listening")
            else everything_done(message)
        )
        watching = mini_init.watch()
        assert await anext(watching) == (Listener(22, ipv4=True, ipv6=True),)
        guest.say(listening(22))
        guest.say(listening(70_000, 0, 80))
        assert await anext(watching) == (Listener(80, ipv4=True, ipv6=False),)
        guest.say(listening(*range(1, 10_000)))
        assert [each.port for each in await anext(watching)] == list(range(1, 1 + MAX_LISTENERS))
        guest.say(hello())  # it has started anew, and is asked again
        assert await anext(watching) == (Listener(22, ipv4=True, ipv6=True),)


async def test_a_guest_that_starts_anew_with_its_answer_is_asked_for_its_ports_again(
    run_dir: Path,
) -> None:
    async with linked(run_dir) as (guest, mini_init):
        news = iter([hello(), listening(22)])
        guest.answer = lambda message: (
            [done(message.request_id), next(news)]
            if message.HasField("watch_listening")
            else everything_done(message)
        )
        await mini_init.first_hello()
        assert await anext(mini_init.watch()) == (Listener(22, ipv4=True, ipv6=True),)


async def test_a_guest_that_cannot_tell_its_ports_says_so(run_dir: Path) -> None:
    async with linked(run_dir) as (guest, mini_init):
        guest.answer = lambda message: (
            [failure(message.request_id, errno.ENOSYS, "unknown")]
            if message.HasField("watch_listening")
            else everything_done(message)
        )
        with pytest.raises(FailedPreconditionError) as refused:
            await anext(mini_init.watch())
        assert refused.value.reason == "GUEST_REQUEST_REFUSED"
