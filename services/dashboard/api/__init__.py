"""The API of the page and of programs, and the files of the page (docs/dashboard.md, "The API").

Owns paths, parameters, forms of answers and the stream of events. Must not know how VMs are stored
or judged.
"""
