"""Write the golden vectors anew, into the package or into the folder that is named."""

from __future__ import annotations

import sys
from pathlib import Path

from lstmcore_conformance.vectors import HERE, write

write(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
