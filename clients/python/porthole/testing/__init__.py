"""A pytest plugin: collects the spans of a test, and asserts that its handshakes are valid.

It needs the extra `porthole-client[pytest]`, and the command `porthole`, which judges.
"""
