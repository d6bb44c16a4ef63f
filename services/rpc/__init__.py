"""Floor 1: gRPC plumbing that every service shares.

Owns server life, channels, status mapping, tracing, and the conversion between protobuf and
handshake values. Must not know the stubs of any one service.
"""
