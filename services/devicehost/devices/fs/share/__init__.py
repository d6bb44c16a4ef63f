"""A share: a directory of the host, and how its options have it shown.

share, rules > lx_metadata, symlink_root > attributes, cache, name_case. A share is the same for
every guest: nothing here knows requests, or what a guest has looked up or opened.
"""
