"""The part `net`: networks of a guest, ours and others', under the same loads in the same rounds.

`cases` has the loads, `namespaces` the two ends of a network, `peers` the programs in between,
`loads` the programs that talk through it, `rounds` the order of a run.
"""
