"""A VM owner that answers from a script, over real gRPC, and records what it was asked."""

from __future__ import annotations

import time
from collections import deque
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import grpc
from porthole.vmowner.v1 import vm_owner_pb2 as pb

from services.handshake.errors import PortholeError
from services.rpc.status import DETAILS_KEY, code_of, status_of

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from google.protobuf.message import Message


@dataclass(frozen=True)
class SlowAnswer:
    """A message that comes after a pause."""

    pause_s: float
    message: Message


class ScriptedOwner:
    """Answers each call, but GetVersion, with the next step of the script.

    A step is a message, a list of what a stream has, an error of Porthole, or a bare status.

    Attributes:
        script: The steps to come.
        asked: Method and request of every call but GetVersion.
        deadlines_s: The deadlines of these calls.
        api_versions: What GetVersion announces.
    """

    def __init__(self) -> None:
        self.script: deque[Any] = deque()
        self.asked: list[tuple[str, Message]] = []
        self.deadlines_s: list[float] = []
        self.api_versions = ["v1"]

    def requests(self, kind: type[Message]) -> list[Any]:
        return [request for _, request in self.asked if isinstance(request, kind)]

    def handlers(self) -> dict[str, grpc.RpcMethodHandler[Any, Any]]:
        service = pb.DESCRIPTOR.services_by_name["VmOwner"]
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {}
        for method in service.methods:
            request: Any = getattr(pb, method.input_type.name)
            response: Any = getattr(pb, method.output_type.name)
            handlers[method.name] = (
                grpc.unary_stream_rpc_method_handler(
                    self._stream, request.FromString, response.SerializeToString
                )
                if method.server_streaming
                else grpc.unary_unary_rpc_method_handler(
                    self._unary(method.name), request.FromString, response.SerializeToString
                )
            )
        return handlers

    def _unary(self, name: str) -> Any:
        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            if name == "GetVersion":
                answer = pb.GetVersionResponse()
                answer.version.api_versions.extend(self.api_versions)
                return answer
            return _step(self._next(name, request, context), context)

        return answer

    def _stream(self, request: Any, context: grpc.ServicerContext) -> Iterator[Any]:
        for step in self._next("WatchVm", request, context):
            yield _step(step, context)

    def _next(self, name: str, request: Message, context: grpc.ServicerContext) -> Any:
        self.asked.append((name, request))
        self.deadlines_s.append(context.time_remaining())
        return self.script.popleft()


def _step(step: Any, context: grpc.ServicerContext) -> Any:
    if isinstance(step, PortholeError):
        status = status_of(step)
        details = ((DETAILS_KEY, status.SerializeToString()),)
        context.set_trailing_metadata(details)
        context.abort(code_of(step), status.message)
    if isinstance(step, grpc.StatusCode):
        context.abort(step, "said by nobody of Porthole")
    if isinstance(step, SlowAnswer):
        time.sleep(step.pause_s)
        return step.message
    return step


@contextmanager
def serving(owner: ScriptedOwner, run_dir: Path) -> Iterator[str]:
    """Serve it on <run_dir>/owner.sock; return the address."""
    address = f"unix:{run_dir}/owner.sock"
    server = grpc.server(ThreadPoolExecutor(4))
    service = grpc.method_handlers_generic_handler("porthole.vmowner.v1.VmOwner", owner.handlers())
    server.add_generic_rpc_handlers((service,))
    server.add_insecure_port(address)
    server.start()
    yield f"unix://{run_dir}/owner.sock"
    server.stop(0).wait()
