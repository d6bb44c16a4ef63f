"""Floor 0: the meaning of the handshake, as pure values and rules.

Owns capabilities, pool checks, the token, device options, state machines, event names, errors and
the trace checker. It must not know I/O, clocks, logging, gRPC or protobuf.
"""
