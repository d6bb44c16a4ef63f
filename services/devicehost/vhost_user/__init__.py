"""The vhost-user back-end of one device.

`messages` knows the syntax of every request, `session` what was negotiated, `rings` and `backend`
what a request does to a device; `sockets` makes the socket, and `listener` is the thin shell with
the thread that reads from it.
"""

from services.devicehost.vhost_user.backend import Backend, Observer
from services.devicehost.vhost_user.listener import Listener
from services.devicehost.vhost_user.sockets import ListeningSocket

__all__ = ["Backend", "Listener", "ListeningSocket", "Observer"]
