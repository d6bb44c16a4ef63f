"""Floor 3: the `porthole` command.

Owns what people and scripts type and read: commands, tables, JSON, exit codes, and the starting and
stopping of service processes. It reaches the services as any other client does, over gRPC; it must
not import them.
"""
