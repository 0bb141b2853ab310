"""What the environment says of the cluster; no Ray here."""

from __future__ import annotations

import os

HERE = ("", "local")  # words for a Ray of one's own on this machine


def address() -> str | None:
    """The cluster that `RAY_ADDRESS` names; None where it names none."""
    given = os.environ.get("RAY_ADDRESS", "").strip()
    return None if given in HERE else given


def is_joined() -> bool:
    """Whether jobs share a cluster, to which nodes may come, rather than a Ray of their own on this machine."""
    return address() is not None
