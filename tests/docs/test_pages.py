"""What the pages show exists: verbs, options, settings, presets, files, links; what they list is all that there is."""

from __future__ import annotations

import re
import shlex
import unicodedata
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import typer.main
import yaml

from docs.messages import messages
from raygenesis.archive.formats import dicom_tags
from raygenesis.cli import app
from raygenesis.settings import Settings, load_settings
from raygenesis.settings.loading import preset_names
from raygenesis.studies.plan import read_plan
from raygenesis.sweeps.space import read_space
from raygenesis.transfer.description import read_description
from raygenesis.transfer.initialisations import RANDOM
from tests.support.pages import CHECKOUT, DOCS, README, Block, all_pages, blocks, lines, pages

SECTIONS = [name for name in Settings.model_fields if hasattr(getattr(Settings(), name), "model_dump")]
ENDINGS = ("html", "ome", "parquet", "pt", "py", "safetensors", "yaml")  # of files called as a section is
NAMES = [str(page.relative_to(CHECKOUT)) for page in all_pages()]


def parsed(words: Sequence[str]) -> dict[str, Any]:
    """The options of a `raygenesis` line, by the command line's own parser, which raises for what it does not know."""
    command: Any = typer.main.get_command(app)
    context = command.make_context("raygenesis", list(words))
    while hasattr(command, "resolve_command"):
        rest = [*context._protected_args, *context.args]
        _, command, rest = command.resolve_command(context, rest)
        context = command.make_context(command.name, rest, parent=context)
    return context.params


def commands(page: Path) -> list[list[str]]:
    """Words of the `raygenesis` lines of a page, those that are given to `ray job submit` and Slurm among them."""
    found = []
    for line in lines(page, "console", "sh"):
        words = shlex.split(line)
        if words[0] == "raygenesis":
            found.append(words[1:])
        elif "jobs/pipeline.py" in words:
            found.append(["run", *words[words.index("jobs/pipeline.py") + 1 :]])
        elif "raygenesis" in words and words[words.index("raygenesis") - 1] == "-m" and "pip" not in words:
            found.append(words[words.index("raygenesis") + 1 :])
        elif words[0] == "sbatch":
            found.append(words[2:])
    return found


@pytest.mark.parametrize("name", NAMES)
def test_every_command_line_is_one(name: str) -> None:
    for words in commands(CHECKOUT / name):
        given = parsed(words)
        overrides = given.get("overrides") or []
        preset = given.get("preset") or "cpu-small"
        load_settings(preset if preset in preset_names() else "cpu-small", overrides)


def test_a_line_that_is_none_is_found() -> None:
    with pytest.raises(Exception, match="No such command"):
        parsed(["pretrian", "--workspace", "W"])
    with pytest.raises(Exception, match="No such option"):
        parsed(["pretrain", "--workspace", "W", "--extnd"])
    assert parsed(["archive", "info", "--workspace", "W"])["workspace"] == "W"


def test_lines_of_make_and_files_of_the_tree_exist() -> None:
    targets = re.findall(r"^([a-z-]+):", (CHECKOUT / "Makefile").read_text(), re.MULTILINE)
    for page in all_pages():
        shown = lines(page, "console", "sh")
        assert {line.split()[1] for line in shown if line.startswith("make ")} <= set(targets)
        for path in re.findall(r"(?:jobs|infra|\.ci)/[\w./-]+\w", "\n".join(shown)):
            assert (CHECKOUT / path).exists(), f"{page.name}: {path}"


@pytest.mark.parametrize("name", NAMES)
def test_python_is_python_and_yaml_what_its_title_says(name: str, tmp_path: Path) -> None:
    for block in blocks(CHECKOUT / name, "python", "py"):
        compile(block.text, name, "exec")
    for block in blocks(CHECKOUT / name, "yaml"):
        assert yaml.safe_load(block.text)
    for title, block in files_shown().items():
        (tmp_path / title).write_text(block.text)
    for block in blocks(CHECKOUT / name, "yaml"):
        if block.title == "SPACE.yaml":
            assert read_space(tmp_path / block.title, "tpe").varied
        elif block.title == "PLAN.yaml":
            assert read_plan(tmp_path / block.title)[0].initialisations[0].weights == RANDOM
        elif block.title:
            assert read_description(tmp_path / block.title)


def files_shown() -> dict[str, Block]:
    """The files that pages show, by name; two of one name are alike."""
    found = [block for page in pages() for block in blocks(page, "yaml") if block.title]
    by_name = {block.title: block for block in found}
    assert all(by_name[block.title] == block for block in found)
    return by_name


@pytest.mark.parametrize("name", [name for name in NAMES if name != "CHANGELOG.md"])
def test_settings_that_are_named_exist(name: str) -> None:
    tree = Settings().model_dump()
    named = re.findall(rf"`[^`\n]*?\b({'|'.join(SECTIONS)})\.([a-z_]\w*)", (CHECKOUT / name).read_text())
    named = [(section, key) for section, key in named if key not in ENDINGS]
    assert [f"{section}.{key}" for section, key in named if key not in tree[section]] == []


def test_the_short_names_of_the_page_of_pretraining_exist() -> None:
    table = (DOCS / "pretrain.md").read_text().partition("## Common settings")[2]
    named = re.findall(r"[` ]([a-z_]+)=", table)
    assert len(named) > 10 and set(named) <= Settings().pretraining.model_dump().keys()


def slug(heading: str) -> str:
    """The anchor of a heading, where GitHub and MkDocs agree."""
    text = re.sub(r"[`*]|\[|\]\([^)]*\)", "", heading)
    text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower())


@pytest.mark.parametrize("name", NAMES)
def test_links_lead_to_files_and_headings(name: str) -> None:
    page = CHECKOUT / name
    text = re.sub(r"```.*?```", "", page.read_text(), flags=re.DOTALL)
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", text):
        if "://" in target:
            continue
        file = (page.parent / target).resolve() if target else page
        assert file.exists(), f"{name}: {target}"
        if anchor:
            headings = {slug(heading) for heading in re.findall(r"^#+ (.*)$", file.read_text(), re.MULTILINE)}
            assert anchor in headings, f"{name}: {target}#{anchor}"


def test_the_readme_is_read_in_minutes() -> None:
    assert len(README.read_text().splitlines()) <= 200


def test_the_page_of_privacy_lists_every_element_that_is_kept() -> None:
    table = (DOCS / "privacy.md").read_text().split("## ")[1]
    listed = [re.findall(r"`([A-Z]\w+)`", row) for row in table.splitlines() if row.startswith("| `")]
    assert listed == [list(dicom_tags.NUMBERS), list(dicom_tags.CODES), list(dicom_tags.WORDS)]


def test_messages_are_found_with_their_values_as_placeholders() -> None:
    found = {each.text: each for some in messages().values() for each in some}
    assert all(some for some in messages().values())
    preset = next(text for text in found if text.startswith("preset "))
    assert preset == "preset ‹preset› is neither a YAML file nor one of: …"
    assert found["a linked folder, and those are not followed"].kind == "left out"
    assert found[preset].kind == "SettingsError" and found[preset].file == "settings/loading.py"
    assert all(text.count("‹") == text.count("›") for text in found)
