"""`python -m flows.cli`: the `rlhf` command."""

import sys

from flows.cli import main

sys.exit(main())
