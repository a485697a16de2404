"""Write the golden vectors again, into the package or into the folder that is named.

Cases that exist already keep their draw, so that the others do not change.
"""

from __future__ import annotations

import sys
from pathlib import Path

from lstmcore_conformance.vectors.index import COMPACT, HERE
from lstmcore_conformance.vectors.reader import draws
from lstmcore_conformance.vectors.writer import write

write(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE, draws() if (HERE / COMPACT).exists() else {})
