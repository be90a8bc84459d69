"""`python -m saekit`."""

import sys

from saekit.cli import main

sys.exit(main())
