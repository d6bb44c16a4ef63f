"""The devices: one folder per virtio device type, each with the same files in the same order."""
