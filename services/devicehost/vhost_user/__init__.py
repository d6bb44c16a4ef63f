"""The vhost-user back-end of one device.

`messages` has the syntax of every request, and `connection` what was negotiated. `backend` executes
requests: `ring` is one virtqueue as the front-end sets it up, `ring_states` the table of its
states, `worker` the thread that serves it, and `event_fds` its eventfds. `held_descriptors` closes
the descriptors of guest memory when they are not needed any more. `sockets` makes the socket, and
`listener` has the thread that reads from it.
"""

from services.devicehost.vhost_user.backend import Backend, Observer
from services.devicehost.vhost_user.listener import Listener
from services.devicehost.vhost_user.sockets import ListeningSocket

__all__ = ["Backend", "Listener", "ListeningSocket", "Observer"]
