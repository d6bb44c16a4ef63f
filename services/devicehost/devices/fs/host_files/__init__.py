"""Files of the host as this process reaches them: descriptors, credentials, calls and their errors.

file > descriptors > errors; credentials > errors; syscalls stands alone. Nothing here knows FUSE,
or what a share is.
"""
