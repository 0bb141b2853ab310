"""Fingerprints: short digests that say whether an artifact is the one that settings and inputs would make."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from typing import Any


def digest(tree: Any) -> str:
    """Sixteen hex digits that identify a JSON tree."""
    return digest_of_text([json.dumps(tree, sort_keys=True)])


def digest_of_text(pieces: Iterable[str]) -> str:
    """The digest of the JSON tree whose text comes in pieces, for trees that are never held."""
    identity = hashlib.blake2b(digest_size=8)
    for piece in pieces:
        identity.update(piece.encode())
    return identity.hexdigest()
