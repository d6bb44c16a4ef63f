"""A guest's mount of one share, between INIT and DESTROY: its nodes and its open files.

mount > native_mounts, native_tables, directory > native_mount, open_files > nodes > volumes.
Nodes and open files are kept by Python (nodes, open_files) or by the native library
(native_tables), with the same methods. Nothing here knows requests.
"""
