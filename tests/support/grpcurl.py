"""The calling convention of grpcurl, as far as docs/clients.md uses it: a client from reflection.

grpcurl itself is not in the package registries. Flags, arguments, the JSON of both directions and
the exit code of a failed call (64 and the status) are those of grpcurl.
"""

from __future__ import annotations

import argparse
import sys
from typing import Any

import grpc
from google.protobuf import json_format
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message_factory import GetMessageClass
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("-plaintext", action="store_true", required=True)
    parser.add_argument("-max-time", type=float)
    parser.add_argument("-d", default="")
    parser.add_argument("address")
    parser.add_argument("what")
    parser.add_argument("symbol", nargs="?")
    flags = parser.parse_args()
    with grpc.insecure_channel(flags.address) as channel:
        database = ProtoReflectionDescriptorDatabase(channel)
        if flags.what == "list":
            print(*sorted(database.get_services()), sep="\n")
            return 0
        pool = DescriptorPool(database)
        if flags.what == "describe":
            print(f"{flags.symbol} is a service:")
            print(*(method.name for method in pool.FindServiceByName(flags.symbol).methods))
            return 0
        try:
            answer = _call(channel, pool, flags)
        except grpc.RpcError as error:
            failed: Any = error
            print(
                f"ERROR:\n  Code: {failed.code()}\n  Message: {failed.details()}", file=sys.stderr
            )
            return int(64 + failed.code().value[0])
    print(json_format.MessageToJson(answer, indent=2))
    return 0


def _call(channel: grpc.Channel, pool: DescriptorPool, flags: argparse.Namespace) -> Any:
    service, _, name = flags.what.partition("/")
    method = pool.FindServiceByName(service).methods_by_name[name]
    request = GetMessageClass(method.input_type)()
    json_format.Parse(sys.stdin.read() if flags.d == "@" else flags.d or "{}", request)
    invoke: Any = channel.unary_unary(
        f"/{service}/{name}",
        request_serializer=lambda message: message.SerializeToString(),
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    return invoke(request, timeout=flags.max_time)


if __name__ == "__main__":
    sys.exit(main())
