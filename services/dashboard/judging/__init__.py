"""The judging of VMs: the checker's verdicts, and where in a handshake they show.

Owns what is computed from the spans of one VM. services.handshake.trace owns the rules. Must not
know how spans are stored, or who asks.
"""
