"""Counter-based randomness: every draw is a function of what it is for, never of what was drawn before."""

import hashlib

import torch


def seed_for(*parts: object) -> int:
    """A 63-bit seed from the parts' text, e.g. seed_for(seed, "flip", step): equal parts, equal seed, anywhere."""
    text = "\x1f".join(map(str, parts))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator_for(*parts: object) -> torch.Generator:
    """A CPU generator seeded by `seed_for`."""
    return torch.Generator().manual_seed(seed_for(*parts))
