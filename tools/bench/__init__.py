"""``capstore bench``: the service beside a bare pycapnp server and beside SFTP.

Invariants: a server never shares a process with its client; nothing leaves the machine; figures
are only ever compared within one round, because machines are noisy.
"""
