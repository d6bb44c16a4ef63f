"""`.wslconfig`: text in, the configuration of a VM and warnings out (handshake.md section 5).

`lines` is the syntax, `keys` the table of all keys, `resolution` what applies of what is written.
No text prevents a VM: what cannot be used is a warning. Must not know VMs or files: the caller
passes the text.
"""

from services.vm_owner.wslconfig.keys import KEYS, Here, Key, NetworkingMode
from services.vm_owner.wslconfig.resolution import (
    MAX_NAME_LENGTH,
    MAX_TEXT_BYTES,
    MAX_WARNINGS,
    ParsedConfig,
    WslConfig,
    parse_wslconfig,
)

__all__ = [
    "KEYS",
    "MAX_NAME_LENGTH",
    "MAX_TEXT_BYTES",
    "MAX_WARNINGS",
    "Here",
    "Key",
    "NetworkingMode",
    "ParsedConfig",
    "WslConfig",
    "parse_wslconfig",
]
