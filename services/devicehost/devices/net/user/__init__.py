"""A user-mode network of one adapter: a passt of its own, over a stream of frames.

`settings` is what a request says, `installation` which passt there is, `process` one passt,
`stream` the frames on their way to it and back, `ports` what the host forwards to the guest, and
`network` all of it while it lives: passt is started again when it ends. Must not know queues or
virtio headers.
"""

from services.devicehost.devices.net.user.network import UserNetwork
from services.devicehost.devices.net.user.settings import UserSettings

__all__ = ["UserNetwork", "UserSettings"]
