"""The demonstration of `porthole demo`: three VMs work on a directory tree of the host.

Owns what is run and what is compared. commands/demo.py has its flags, progress and exit code.
"""
