"""A federation between real hospitals: the programs that each party installs, and the adapter to Flower.

Each hospital runs two programs under two users. The *site service* (`service`) holds the images, the ledger
and the identity key, and answers sealed requests on a local socket. The *node* (`flower.node`) carries
opaque bytes between that socket and the coordinator's SuperLink; nothing that the coordinator sends is ever
executed. The coordinator runs the same `fedveil.study.run` as a study on one machine, through
`coordinator.transport` over a `carrier`. `kits` writes what each party needs to start. This module imports nothing, so
the node has few imports.
"""

__all__: list[str] = []
