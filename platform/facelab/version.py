"""Which code this is."""

import subprocess
from pathlib import Path

import facelab


def git_sha() -> str:
    """Of the checkout, with + when it has changes; "unknown" outside one."""
    root = Path(facelab.__path__[0]).parents[1]
    try:
        sha = subprocess.run(
            ["git", "rev-parse", "--short=12", "HEAD"], cwd=root, capture_output=True, text=True, check=True
        )
        changed = subprocess.run(["git", "status", "--porcelain"], cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return sha.stdout.strip() + ("+" if changed.stdout.strip() else "")
