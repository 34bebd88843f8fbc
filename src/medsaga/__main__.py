"""``python -m medsaga``."""

import sys

from medsaga.cli import main

sys.exit(main())
