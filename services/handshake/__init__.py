"""Floor 0: what the handshake means, as pure values and rules.

Owns capabilities, pool checks, the token, device options, state machines, event names, errors and
the trace checker. It must not know I/O, clocks, logging, gRPC or protobuf.
"""
