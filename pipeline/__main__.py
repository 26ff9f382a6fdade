"""`python -m pipeline` is the `afterglow` command."""

import sys

from pipeline.cli import main

sys.exit(main())
