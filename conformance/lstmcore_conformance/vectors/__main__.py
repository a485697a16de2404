"""Write the golden vectors anew, into the package or into the folder that is named.

Cases that are there already keep their draw, so that only what has changed changes.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lstmcore_conformance.vectors.reader import HERE, draws
from lstmcore_conformance.vectors.writer import write

write(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE, draws() if (HERE / "index.json").exists() else {})
