"""A share: a directory of the host, and how its options have it shown.

share > rules > lx_metadata, symlink_root > attributes; cache and name_case stand alone. A share is
the same for every guest: nothing here knows what a guest has looked up or opened.
"""
