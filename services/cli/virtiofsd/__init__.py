"""The command lines of virtiofsd, and what becomes of them here.

`options` has every option as data; `reading` and docs/virtiofsd.md follow from it.
"""
