"""The operations of FUSE requests, one module per theme, and the table that names them all.

table > names > files; directories, locks, metadata and xattrs beside them; request below all. An
operation takes the mount and the request, places the reply's data and returns their length. It
raises OSError for every failure.
"""
