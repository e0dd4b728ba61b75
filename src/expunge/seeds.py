"""Randomness without global state: every generator is derived from a seed and the labels that say what it is for.

Because a draw depends on its labels alone (run seed, step, purpose, optimizer step, process) and not on how many draws
came before it, a resumed run makes the draws that an uninterrupted one would have made.
"""

from __future__ import annotations

import hashlib

import torch


def derive(seed: int, *labels: str | int) -> int:
    """A 63-bit seed for the purpose that `labels` name. (torch's CPU generator uses 32 bits of it.)"""
    text = "/".join([str(seed), *(str(label) for label in labels)])
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8]) >> 1


def generator(seed: int, *labels: str | int) -> torch.Generator:
    """A CPU generator for the purpose that `labels` name. Draws are made on the CPU so that every device sees the same."""
    return torch.Generator().manual_seed(derive(seed, *labels))
