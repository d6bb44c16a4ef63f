"""What each FUSE request does, one module per theme, and the table that names them all.

An operation takes the mount and the request, places its reply's data and returns their length; it
raises OSError for every failure.
"""
