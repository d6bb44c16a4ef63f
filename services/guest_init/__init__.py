"""Floor 2: guest init, inside the guest. It reads what the kernel publishes, reports and serves it.

The init of a WSL2 guest reports to its owner when it starts; that of a WSLC guest answers the
session. The owner checks what is reported here.
"""
