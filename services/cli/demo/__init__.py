"""The demonstration of `porthole demo`: three VMs work on a directory tree of the host.

Owns the steps and the comparisons. commands/demo.py has the flags, the progress and the exit code.
"""
