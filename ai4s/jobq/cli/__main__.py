"""`python -m ai4s.jobq.cli` is `jobq`."""

from . import main

main()
