"""Which code this is: its commit, and a digest of its files, which is known without git, too."""

import hashlib
import subprocess
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import facelab
import models
from facelab.submitted import told

_ROOT = Path(facelab.__path__[0]).parents[1]


@dataclass(frozen=True)
class Commit:
    """Of a checkout."""

    sha: str
    branch: str
    """Empty where none is checked out."""
    changed: bool
    """Whether files differ from it."""
    repository: str
    """Of the remote named origin, as git knows it; empty where there is none."""

    def metadata(self) -> dict[str, str]:
        """For a submitted job, whose upload has no .git."""
        return {
            "git_sha": self.sha, "git_branch": self.branch, "git_changed": "true" if self.changed else "",
            "git_repository": self.repository,
        }  # fmt: skip


@cache
def commit() -> Commit | None:
    """Of this checkout, or what its submission told of it; None where neither knows."""
    if sha := _git("rev-parse", "HEAD"):
        return Commit(
            sha,
            _git("symbolic-ref", "--short", "HEAD"),
            bool(_git("status", "--porcelain")),
            _git("remote", "get-url", "origin"),
        )
    known = told()
    if sha := known.get("git_sha", ""):
        names = ("git_branch", "git_changed", "git_repository")
        branch, changed, repository = (known.get(name, "") for name in names)
        return Commit(sha, branch, bool(changed), repository)
    return None


def git_sha() -> str:
    """The commit's first digits, with + where files differ from it; "unknown" where there is none."""
    known = commit()
    return known.sha[:12] + ("+" if known.changed else "") if known else "unknown"


@cache
def code_hash() -> str:
    """Of every source file of facelab and models, by their names: equal wherever the code is."""
    digest = hashlib.sha256()
    for package in (facelab, models):
        folder = Path(next(iter(package.__path__)))
        for file in sorted(folder.rglob("*.py")):
            content = hashlib.sha256(file.read_bytes()).hexdigest()
            digest.update(f"{package.__name__}/{file.relative_to(folder).as_posix()} {content}\n".encode())
    return digest.hexdigest()


def _git(*command: str) -> str:
    """What git says; nothing outside a checkout."""
    try:
        done = subprocess.run(["git", *command], cwd=_ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return done.stdout.strip()
