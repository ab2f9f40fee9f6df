"""facelab: distributed experiments on Ray for real-world face super-resolution."""

__version__ = "0.1.0"
