"""Write the golden vectors of ``index.json`` anew: ``python tests/core/golden/regenerate.py``.

Only where the specification has changed, or for a case that was added to the index.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from safetensors.numpy import save_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from test_reference import golden_cases  # noqa: E402  # after the path

for name, arrays in golden_cases().items():
    part = HERE / f"{name}.part"
    save_file(arrays, part)
    os.replace(part, HERE / f"{name}.safetensors")
