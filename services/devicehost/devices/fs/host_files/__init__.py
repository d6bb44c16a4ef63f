"""Files of the host as this process reaches them: descriptors, credentials, calls and their errors.

file > descriptors, credentials > errors, syscalls. Nothing here knows FUSE or shares.
"""
