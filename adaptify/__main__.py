"""`python -m adaptify`: the command line, also for launchers (`torchrun -m adaptify retrofit ...`)."""

from __future__ import annotations

import sys

from adaptify.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
