"""facelab: distributed experiments on Ray for real-world face super-resolution."""

import os
import sys

__version__ = "0.1.0"

# Both are read when Ray and tqdm are first imported, so they stand here, before everything else.
# Started by `uv run`, Ray would have each worker build an environment of its own, without our extras; instead, workers
# use the driver's Python.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")
if not sys.stderr.isatty():  # in a log, each update of a progress bar is a new line
    os.environ.setdefault("TQDM_MININTERVAL", "10")
