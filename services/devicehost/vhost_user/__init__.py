"""The vhost-user back-end of one device.

`messages` has the syntax of every request, and `connection` what was negotiated. `backend` carries
requests out: `ring` is what a front-end sets up, `ring_states` the table of what may happen to it,
`worker` the thread that serves it. `sockets` makes the socket, and `listener` has the thread that
reads from it.
"""

from services.devicehost.vhost_user.backend import Backend, Observer
from services.devicehost.vhost_user.listener import Listener
from services.devicehost.vhost_user.sockets import ListeningSocket

__all__ = ["Backend", "Listener", "ListeningSocket", "Observer"]
