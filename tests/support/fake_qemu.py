"""A stand-in for QEMU that boots nothing: it speaks QMP, has a console, and ends as it is told to.

Run as a program. The environment variable FAKE_QEMU has what it does, in words:
`silent` (no QMP), `refuses` (ends at once), `no-kvm` (the same with KVM), `stuck-kvm` (KVM runs
nothing), `stubborn` (does not quit), `keeps` (its guest lets go of no device), `end=REASON` (a
SHUTDOWN event at the start).
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from typing import Any

CONSOLE = "[    0.0] Linux version 6.12.95-porthole\n[    0.1] waiting for nothing\n"


def connection(name: str) -> socket.socket:
    (argument,) = (word for word in sys.argv if word.startswith(f"socket,id={name},fd="))
    return socket.socket(fileno=int(argument.rpartition("=")[2]))


class Monitor:
    def __init__(self, words: list[str]) -> None:
        self._words = words
        self._socket = connection("monitor")
        self._end_reason = ""

    def say(self, message: dict[str, Any]) -> None:
        self._socket.sendall(json.dumps(message).encode() + b"\r\n")

    def event(self, name: str, **data: object) -> None:
        stamp = {"seconds": 1, "microseconds": 0}
        self.say({"event": name, "data": data, "timestamp": stamp})

    def greet(self) -> None:
        version = {"qemu": {"major": 7, "minor": 2, "micro": 0}, "package": ""}
        self.say({"QMP": {"version": version, "capabilities": ["oob"]}})

    def serve(self) -> None:
        decoder, pending = json.JSONDecoder(), ""
        while data := self._socket.recv(65536):
            pending += data.decode()
            while pending := pending.lstrip():
                try:
                    request, end = decoder.raw_decode(pending)
                except json.JSONDecodeError:
                    break
                pending = pending[end:]
                self.answer(request)

    def end_when_negotiated(self, reason: str) -> None:
        self._end_reason = reason

    def answer(self, request: dict[str, Any]) -> None:
        command, arguments = request["execute"], request.get("arguments", {})
        number = {"id": request["id"]} if "id" in request else {}
        if command == "device_add" and "refuse" in str(arguments):
            error = {"class": "GenericError", "desc": "Duplicate device"}
            self.say({"error": error, **number})
            return
        self.say({"return": [] if command == "query-chardev" else {}, **number})
        if command == "device_del" and "keeps" not in self._words:
            self.event("DEVICE_DELETED", device=arguments["id"], path="/machine")
        if command == "qmp_capabilities" and self._end_reason:
            self.event("SHUTDOWN", guest=True, reason=self._end_reason)
            time.sleep(1.0)  # as long as it takes to read that
            sys.exit(0)
        if command == "quit" and "stubborn" not in self._words:
            self.event("SHUTDOWN", guest=False, reason="host-qmp-quit")
            sys.exit(0)


def main() -> None:
    if "--version" in sys.argv:
        print("QEMU emulator version 7.2.99 (Debian 1:7.2+dfsg)")
        return
    words = os.environ.get("FAKE_QEMU", "").split()
    if "no-kvm" in words and "kvm" in sys.argv:
        sys.exit("qemu: error: failed to set MSR 0x10a to 0x69")
    if "refuses" in words:
        sys.exit("qemu: cannot set up guest memory 'ram': Cannot allocate memory")
    console = connection("console")
    if not ("stuck-kvm" in words and "kvm" in sys.argv):
        console.sendall(CONSOLE.encode())
    monitor = Monitor(words)
    if "silent" in words:
        time.sleep(600)
    monitor.greet()
    for word in words:
        if word.startswith("end="):
            if word == "end=guest-panic":
                console.sendall(b"Kernel panic - not syncing: No working init found.\n")
            monitor.end_when_negotiated(word.removeprefix("end="))
    monitor.serve()


if __name__ == "__main__":
    main()
