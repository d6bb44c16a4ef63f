"""QEMU: a machine that runs a real Linux guest.

    machine      the Machine: boots, attaches, detaches, ends
    architecture what QEMU emulates for a guest, by its kernel
    installation which QEMU there is, and what it can
    command_line the arguments of QEMU, from the guest and the installation
    child        a process of the machine, which ends with this one, and its output
    monitor      QMP, the connection that commands QEMU
    guest_memory the memory of the guest, and with strict isolation the pool of each port
    ports        the ports that devices are plugged into
    control      the interface of the guest's init, which mounts and configures

Must not know device hosts or shares: a device is a vhost-user socket here. The guest's kernel
reserves the pool and its init reports it, also where guest_memory says what it is to be.
"""
