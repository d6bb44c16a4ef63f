"""QEMU: a machine that runs a real Linux guest.

    machine      the Machine: boots, attaches, detaches, ends
    installation which QEMU there is, and what it can
    command_line the arguments of QEMU, from the guest and the installation
    child        a process of the machine, which ends with this one, and its output
    monitor      QMP, the connection that commands QEMU
    ports        the ports that devices are plugged into
    control      the interface of the guest's init, which mounts and configures

Must not know device hosts, shares or pools: the guest's kernel reserves the pool, its init reports
it, and a device is a vhost-user socket here.
"""
