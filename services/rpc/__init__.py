"""Floor 1: gRPC plumbing that every service shares.

Owns server life, channels, status mapping, tracing, and protobuf <-> handshake values. Knows what
the handshake's words mean on the wire, and nothing of what any one service does with them.
"""
