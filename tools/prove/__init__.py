"""``capstore prove``: what a crash may leave of an image, state by state, and what is found there.

Invariants:

* A workload is data (`capstore.tools.prove.workload`), the model of what it does a few dictionaries
  (`capstore.tools.prove.wf1_model`, `st1_model`), and its name alone makes it again.
* Every state that is examined has an id, ``WORKLOAD@STATE``, that replays it alone; a crash that
  follows upon a crash is ``WORKLOAD@STATE@STATE``.
* The same arguments examine the same states with the same outcomes, on however many processors.
* What must hold of a state stands in `capstore.tools.prove.examine`, and nowhere else.
* A state is examined by itself or recognised as one that cannot be told from one that was
  (`capstore.tools.prove.tracing`), which comes to the same.
"""
