"""The network of this host, as far as a user-mode network hands it on to its guest.

`view` is what there is at one moment, `changes` the notice that there may be another one, and
`watching` tells those who ask of each other one. Must not know guests, passt or adapters.
"""

from services.devicehost.devices.net.host_network.view import Family, HostView, look
from services.devicehost.devices.net.host_network.watching import Subscription, watch

__all__ = ["Family", "HostView", "Subscription", "look", "watch"]
