"""The kernel command line that the VM owner writes. sizing.py decides the size of the pool."""

from __future__ import annotations


def kernel_command_line(pool_bytes: int, vm_id: str, traceparent: str) -> str:
    """Write the kernel command line of a VM (handshake.md section 1).

    Args:
        pool_bytes: Size of the bounce pool to ask for; 0: none, or the machine places it.
        vm_id: UUID of the VM.
        traceparent: W3C trace context that is the parent of the guest's spans; empty: none.
    """
    items = [f"swiotlb=force hv_pci_swiotlb={pool_bytes}"] if pool_bytes else []
    items.append(f"porthole.vm_id={vm_id}")
    if traceparent:
        items.append(f"porthole.traceparent={traceparent}")
    return " ".join(items)
