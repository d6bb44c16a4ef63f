"""Several shares on one device, each a directory of the device's root.

root > mount > shares: what the root answers, what one guest has of all shares, and which shares
there are. Within a share everything is as on a device of its own.
"""
