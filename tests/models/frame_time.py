"""Time a frame of silero-vad: the example of lstmcore beside ONNX Runtime's session alone, one thread each.

``python tests/models/frame_time.py``, in the environment of the session ``models``; set OPENBLAS_NUM_THREADS=1 and
LSTMCORE_NUM_THREADS=1. Values are compared by test_real_models.py.
"""

from __future__ import annotations

import importlib.util
import statistics
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import onnxruntime

sys.path.insert(0, str(Path(__file__).parents[2] / "examples" / "real_models"))
import voice_activity  # its folder is on the path from here on

ROUNDS = 15


def main() -> None:
    """Print the median of the rounds, which alternate."""
    data = Path(importlib.util.find_spec("silero_vad").origin).parent / "data"
    path = str(Path(tempfile.mkdtemp()) / "vad.safetensors")
    voice_activity.convert(str(data / "silero_vad.jit"), path)
    frames = np.random.default_rng(0).uniform(-0.3, 0.3, (100, 512)).astype(np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(str(data / "silero_vad.onnx"), options, ["CPUExecutionProvider"])
    more = {"sr": np.array(16000, np.int64), "state": np.zeros((2, 1, 128), np.float32)}
    inputs = [{"input": np.pad(frame, (64, 0))[None], **more} for frame in frames]
    detector = voice_activity.VoiceActivity(path)
    calls = {
        "lstmcore": lambda: [detector(frame) for frame in frames],
        "ONNX Runtime": lambda: [session.run(None, given) for given in inputs],
    }
    times = {name: [] for name in calls}
    for turn in range(ROUNDS + 2):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if turn > 1:
                times[name].append(1e6 * (time.perf_counter() - start) / len(frames))
    ours, theirs = (statistics.median(values) for values in times.values())
    print(f"a frame: lstmcore ({detector.lstm.backend.name}) {ours:.0f} us, ONNX Runtime {theirs:.0f} us")
    print(f"ratio {ours / theirs:.2f}")


if __name__ == "__main__":
    main()
