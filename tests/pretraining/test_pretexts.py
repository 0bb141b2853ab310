"""The table of pretext tasks: what each is made of, as METHOD and the paper have it, and what settings change in it."""

from __future__ import annotations

import pytest

from raygenesis.errors import SettingsError
from raygenesis.pretraining.corruption_sets import CORRUPTIONS
from raygenesis.pretraining.pretexts import PRETEXTS, pretext_of, table
from raygenesis.settings import PretrainingSettings

RESTORING = {"models-genesis", "in-painting", "patch-shuffling", "auto-encoder", "mae"}
SEMANTIC = {"semantic-genesis", "in-painting+semantics", "patch-shuffling+semantics", "models-genesis+semantics"}


def chosen(**settings):
    return pretext_of(PretrainingSettings(**settings))


def test_restorations_alone_learn_from_random_crops_and_those_with_semantics_from_patterns():
    for name in RESTORING:
        pretext = PRETEXTS[name]
        assert (pretext.store.name, pretext.lambda_rec, pretext.puzzle, pretext.lambda_cls) == ("crops", 1, None, None)
    for name in SEMANTIC:
        pretext = PRETEXTS[name]
        assert (pretext.store.name, pretext.lambda_rec, pretext.puzzle, pretext.lambda_cls) == (
            "patterns",
            1,
            "label",
            0.01,
        )
    others = {"models-genesis-on-patterns", "self-classification", "pattern-contrast", "rubiks-cube", "rotation"}
    assert RESTORING | SEMANTIC | others == PRETEXTS.keys()


def test_the_auto_encoder_alone_has_no_skips():
    assert [name for name, pretext in PRETEXTS.items() if not pretext.skips] == ["auto-encoder"]


def test_the_control_learns_from_patterns_what_random_crops_teach_and_contrast_alone_has_no_other_part():
    control, contrast = PRETEXTS["models-genesis-on-patterns"], PRETEXTS["pattern-contrast"]
    assert (control.store.name, control.corruption, control.parts) == (
        "patterns", "semantic-genesis-paper", ("restoration",),
    )  # fmt: skip
    assert (contrast.store.name, contrast.corruption, contrast.lambda_pair, contrast.parts) == (
        "patterns", "semantic-genesis-paper", 1, ("contrast",),
    )  # fmt: skip
    assert not any(pretext.learns_from_pairs for name, pretext in PRETEXTS.items() if name != "pattern-contrast")


def test_with_semantics_the_corruption_is_that_of_the_restoration_alone():
    for name in SEMANTIC - {"semantic-genesis"}:
        assert PRETEXTS[name].corruption == PRETEXTS[name.removesuffix("+semantics")].corruption == name.split("+")[0]


def test_puzzles_and_corruptions_of_the_table_exist():
    from raygenesis.pretraining.puzzles import PUZZLES

    for pretext in PRETEXTS.values():
        assert pretext.corruption in CORRUPTIONS
        assert pretext.puzzle is None or pretext.puzzle in PUZZLES
        assert pretext.puzzle in (None, "label") or pretext.lambda_rec is None
        assert (pretext.puzzle is None) == (pretext.lambda_cls is None)


def test_settings_change_corruption_and_weights():
    pretext = chosen(corruption="in-painting", lambda_rec=2, lambda_cls=0)
    assert (pretext.corruption, pretext.lambda_rec, pretext.lambda_cls) == ("in-painting", 2, 0)
    assert chosen() == PRETEXTS["semantic-genesis"]
    assert chosen(pretext="mae", corruption="mae") == PRETEXTS["mae"]
    assert chosen(corruption="mae").corruption == "mae"


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"pretext": "jigsaw"}, ["pretraining.pretext='jigsaw'", "choose one of semantic-genesis, models-genesis"]),
        ({"corruption": "fog"}, ["pretraining.corruption='fog'", "choose one of"]),
        ({"pretext": "in-painting", "lambda_cls": 0.1}, ["pretraining.lambda_cls=0.1", "in-painting", "classifies"]),
        ({"pretext": "rotation", "lambda_rec": 1}, ["pretraining.lambda_rec=1", "rotation", "restores nothing"]),
        (
            {"pretext": "mae", "corruption": "in-painting"},
            ["corruption='in-painting' masks nothing", "mae", "leave it"],
        ),
        ({"pretext": "in-painting", "lambda_rec": 0}, ["in-painting", "raise one of them"]),
    ],
)
def test_what_cannot_be_is_said(settings, words):
    with pytest.raises(SettingsError) as error:
        chosen(**settings)
    sentence = str(error.value)
    assert all(word in sentence for word in words) and "\n" not in sentence


def test_the_printed_table_has_a_line_a_task():
    head, *lines = table()
    assert [line.split()[0] for line in lines] == list(PRETEXTS)
    assert head.split() == ["pretext", "learns", "from", "corruption", "restores", "classifies", "contrasts"]
    assert next(line for line in lines if line.startswith("pattern-contrast")).endswith("pairs, λ 1")
    assert "label, λ 0.01" in lines[0] and lines[0].split()[1] == "patterns"
