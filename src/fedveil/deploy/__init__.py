"""A federation between real hospitals: what each of them installs, and the adapter to Flower.

At a hospital run two programs under two users. The *site service* (`service`) holds the images, the ledger
and the identity key, and answers sealed requests on a local socket. The *node* (`flower.node`) carries
opaque bytes between that socket and the coordinator's SuperLink; nothing that the coordinator sends is ever
executed. The coordinator runs the same `fedveil.study.run` as a study on one machine, through
`flower.transport`. `kits` writes what each party needs to start. This module imports nothing, so that the
node stays small.
"""

__all__: list[str] = []
