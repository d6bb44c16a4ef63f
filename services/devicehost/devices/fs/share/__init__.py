"""A share: a directory of the host, and the options by which a guest sees it.

share, rules > xattr_names > lx_metadata, symlink_root > attributes, cache, name_case, privileges. A
share is the same for every guest: nothing here knows requests, or what a guest has looked up or
opened.
"""
