"""The receiver of OTLP: over gRPC and over HTTP, into one intake.

Owns how a request comes, its bounds and the refusals. Must not know how spans are stored or judged.
"""
