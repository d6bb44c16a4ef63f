"""The work that tests and demonstrations make the guest do, through its drivers.

Owns the devices by tag (workload), hashing and copying trees (hash, copy; on crew and files), and
programs in the guest's network (network). Must not know gRPC, vhost-user, virtqueues or memory.
"""
