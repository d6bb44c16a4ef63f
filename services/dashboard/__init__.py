"""The dashboard: receives traces and metrics, judges the handshakes in them, and shows both.

The judge is services.handshake.trace, as for `porthole handshake verify`. It knows the other
services by what they export only.
"""
