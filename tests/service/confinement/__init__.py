"""Confinement: whatever clients do with what they got, they do no more than was granted.

Clients with connections of their own call anything with anything that they ever received, and
hand each other tokens through a directory that all of them have, and through names in a store.
After every call the tree and the store, seen by their owner, are those of the model, and every
answer shows what the model shows.

`rights` and `world` are the model, `machine` is a service with its clients; what these do is in
`looking`, `renaming`, `files`, `stores`, `sinks`, `names`, `saving` and `control`.  `play` puts it
together, and `faults` are services that break one promise each.
"""
