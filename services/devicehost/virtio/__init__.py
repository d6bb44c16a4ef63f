"""The device side of virtio: queues in guest memory, and what a device offers to its transport."""
