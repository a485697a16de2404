"""Write the golden vectors anew: ``python tests/golden/regenerate.py``. Only where the specification has changed."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

from safetensors.numpy import save_file

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE.parent))

from lstmcore.config import LSTMConfig  # noqa: E402  # after the path
from test_reference import SWITCHES, H, I, golden_cases  # noqa: E402  # after the path

for name, arrays in golden_cases().items():
    part = HERE / f"{name}.part"
    save_file(arrays, part)
    os.replace(part, HERE / f"{name}.safetensors")
configs = {name: LSTMConfig(input_size=I, hidden_size=H, **switches).to_dict() for name, switches in SWITCHES.items()}
part = HERE / "index.json.part"
part.write_text(json.dumps(configs, indent=1) + "\n", encoding="utf-8")
os.replace(part, HERE / "index.json")
