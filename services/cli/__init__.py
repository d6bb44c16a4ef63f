"""Floor 3: the `porthole` command.

Owns what people and scripts type and read: commands, tables, JSON, exit codes, and the starting and
stopping of service processes. It reaches the services over gRPC, as any other client does, with
three exceptions, which a contract lists: `porthole device` runs a device in this very process,
`porthole version` reports this process's fast path, and `porthole session` and the demonstration
play the WSLC session with services.session.
"""
