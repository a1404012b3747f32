"""``capstore fuzz``: images of every format, damaged and forged, and what the parsers make of them.

Invariants:

* A case is a format and a number, printed as ``FORMAT:NUMBER``; the same words give the same bytes
  and the same questions (`capstore.tools.fuzz.case`).
* Cases run in a process of their own (`capstore.tools.fuzz.worker`), with bounds on processor time
  and memory for each; what kills that process is a failure of the case and no end of the run.
* What must hold for whatever an image holds stands in `capstore.tools.fuzz.check`, and nowhere
  else.
"""
