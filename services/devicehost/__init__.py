"""The device host: serves virtio devices over vhost-user, each through an aperture of its own.

Layers, top to bottom: servicer | standalone | telemetry > host > vhost_user | devices > virtio >
memory > accounting > fastpath | peer_writes | throttle | vm_threads.
"""
