"""The vhost-user back-end of one device.

`messages` knows the syntax of every request, `session` what was negotiated, `rings` and `backend`
what a request does to a device; `listener` is the thin shell that owns the socket and its thread.
"""

from services.devicehost.vhost_user.backend import Backend, Observer
from services.devicehost.vhost_user.listener import Listener

__all__ = ["Backend", "Listener", "Observer"]
