"""``capstore bench``: the service beside a bare pycapnp server and beside SFTP, and images beside
what else reads them.

Invariants: a server never shares a process with its client, while all who read an image do so in
one process; nothing leaves the machine; figures are only ever compared within one round, because
machines are noisy.
"""
