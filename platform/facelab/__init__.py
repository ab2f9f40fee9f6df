"""facelab: distributed experiments on Ray for real-world face super-resolution."""

import os

# Started by `uv run`, Ray would have each worker build an environment of its own, without our extras. Workers use the
# driver's Python instead. Ray reads this when it is first imported, so it stands before everything else.
os.environ.setdefault("RAY_ENABLE_UV_RUN_RUNTIME_ENV", "0")

__version__ = "0.1.0"
