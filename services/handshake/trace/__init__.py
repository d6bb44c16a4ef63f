"""The trace checker: what of a handshake a trace shows, and whether it is right.

Owns the table of clauses, which is the requirement (handshake.md sections 1 to 10) as data, and the
verdict. A rule computes the right value from what came before, with the functions that the services
use. It must not know I/O: its caller reads the file.
"""
