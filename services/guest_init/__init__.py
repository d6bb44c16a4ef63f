"""Floor 2: inside the guest. Reads what the kernel published, reports it, and serves it.

A WSL2 guest's init pushes to its owner when it starts; a WSLC guest's init is asked by the session.
Knows neither pools' rules nor tokens: the owner checks what is reported here.
"""
