"""The settings page says what the code says."""

from __future__ import annotations

from pathlib import Path

from raygenesis.settings import Settings, load_settings
from raygenesis.settings.reference import reference

PAGE = Path(__file__).resolve().parents[2] / "docs" / "settings.md"


def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text() == reference(), "write it again: raygenesis config --reference > docs/settings.md"


def leaves(tree: object, prefix: str = "") -> list[str]:
    if not isinstance(tree, dict):
        return [prefix.removesuffix(".")]
    return [leaf for name, below in tree.items() for leaf in leaves(below, f"{prefix}{name}.")]


def test_every_setting_is_there_with_a_meaning() -> None:
    rows = {line.split("`")[1]: line for line in reference().splitlines() if line.startswith("| `")}
    assert rows.keys() == set(leaves(load_settings("paper-3d").model_dump(mode="json")))
    assert all(not line.endswith("|  |") for line in rows.values())
    assert f"`{Settings().discovery.num_neighbours}`" in rows["discovery.num_neighbours"]
