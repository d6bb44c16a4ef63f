"""The commands of `porthole`, one module for each command or group, named after it.

main.py finds the modules here, and imports one when its command is called. Each module has
`register(root)`, which adds the command or the group of that name. Commands do not import each
other.
"""
