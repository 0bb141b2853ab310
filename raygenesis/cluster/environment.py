"""What the environment says of the cluster; no Ray here."""

from __future__ import annotations

import os


def is_joined() -> bool:
    """Whether jobs share a cluster, to which nodes may come, rather than a Ray of their own on this machine."""
    return "RAY_ADDRESS" in os.environ
