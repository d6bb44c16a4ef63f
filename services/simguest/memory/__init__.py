"""The guest's memory, and the DMA API through which a driver shares parts of it with a device.

Owns the RAM (ram), its ordinary pages (pages), the interface for mapping buffers with its direct
kind (dma), and the kind that copies through a bounce pool (bounce). Must not know virtqueues,
drivers or how the kernel chose the pool's address.
"""
