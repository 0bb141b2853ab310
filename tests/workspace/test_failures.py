"""Failures of one cause are told together, whatever their numbers."""

from __future__ import annotations

from raygenesis.workspace.failures import grouped


def test_reasons_that_differ_in_numbers_or_hashes_alone_are_one_cause() -> None:
    reasons = {
        "a": "20×30×30 mm is smaller than the largest crop, 60×60×60 mm",
        "b": "same voxels as 0123456789abcdef",
        "c": "41×30×9.5 mm is smaller than the largest crop, 60×60×60 mm",
        "d": "damaged",
        "e": "same voxels as fedcba9876543210",
        "f": "1,234×30×1 mm is smaller than the largest crop, 60×60×60 mm",
        "g": "20×30×30 mm is smaller than the largest crop",
    }
    assert grouped({"source": source, "reason": reason} for source, reason in reasons.items()) == [
        ("…×30×… mm is smaller than the largest crop, 60×60×60 mm", ["a", "c", "f"]),
        ("same voxels as …", ["b", "e"]),
        ("damaged", ["d"]),
        (reasons["g"], ["g"]),
    ]
    assert grouped([]) == []
