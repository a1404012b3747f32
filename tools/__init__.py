"""What a person types: the ``capstore`` command."""

import os

# numpy is here for tables, not for linear algebra.  The threads that its BLAS begins when it is
# loaded would never have anything to do, and be in no sandbox.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
