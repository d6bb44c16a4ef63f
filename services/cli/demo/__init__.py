"""`porthole demo`: what it shows, and how the result is compared with the host.

Owns the demonstration itself. Its flags, its progress and its exit code are in commands/demo.py.
"""
