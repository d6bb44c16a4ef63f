"""Several shares on one device, each a directory of the device's root.

root > mount > shares: the operations of the root, a guest's mount of all shares, and the shares
themselves. Within a share everything is as on a device of its own.
"""
