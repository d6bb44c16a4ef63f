"""One command in a Linux guest whose root is the host's: `porthole run`.

Owns the plan of it, the guest that is booted for it, and the command's streams and terminal.
commands/run.py has the flags and the exit codes.
"""
