"""Settings: published numbers, and mistakes answered by one sentence that names the key."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from pydantic import ValidationError

from raygenesis.errors import SettingsError
from raygenesis.pretraining.pretexts import pretext_of
from raygenesis.settings import PRESETS, Settings, as_yaml, load_settings, settings_from

NAMES = sorted(path.stem for path in PRESETS.glob("*.yaml"))


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat.update(leaves(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value})
    return flat


DEFAULTS = leaves(Settings().model_dump(mode="json"))


def values(settings: Settings, *keys: str) -> list[Any]:
    flat = leaves(settings.model_dump())
    return [flat[key] for key in keys]


def refusal(*overrides: str, preset: str = "cpu-small") -> str:
    with pytest.raises(SettingsError) as error:
        load_settings(preset, list(overrides))
    sentence = str(error.value)
    assert "\n" not in sentence and len(sentence) < 250
    return sentence


def test_the_published_settings_are_presets() -> None:
    assert {"paper-3d", "released-3d", "paper-2d", "cpu-small"} <= set(NAMES)


@pytest.mark.parametrize("preset", ["paper-3d", "released-3d", "paper-2d"])
def test_schedule_and_losses_are_the_paper_s(preset: str) -> None:
    pretraining = load_settings(preset).pretraining
    pretext = pretext_of(pretraining)
    assert (pretext.lambda_rec, pretext.lambda_cls, pretext.puzzle) == (1, 0.01, "label")
    assert (pretraining.learning_rate, pretraining.batch_size) == (1e-3, 64)
    assert (pretraining.decay_epochs, pretraining.decay_factor) == (40, 0.5)
    assert (pretraining.num_classification_epochs, pretraining.patience) == (20, 50)
    assert pretraining.base_width == 32


def test_paper_3d_is_44_coordinates_of_one_reference_in_200_patients() -> None:
    settings = load_settings("paper-3d")
    discovery = settings.discovery
    assert (discovery.num_references, discovery.num_coordinates, discovery.num_neighbours) == (1, 44, 200)
    assert discovery.cube_shape == (32, 64, 64) and settings.ndim == 3
    assert settings.intensity.window == (-1000, 1000)
    assert pretext_of(settings.pretraining).corruption == "semantic-genesis-paper"


LUNA16_MM = np.array([1.25, 0.7, 0.7])  # the usual voxel of the scans that the published numbers are about

# METHOD.md, "Self-discovery": R, C, K, held-out neighbours (None: not told), cube z y x.
PUBLISHED = {
    "paper-3d": (1, 44, 200, 30, (32, 64, 64)),
    "released-3d": (44, 1, 200, 30, (32, 64, 64)),
    "paper-2d": (1, 100, 1000, None, (224, 224)),
}


@pytest.mark.parametrize("preset", PUBLISHED)
def test_self_discovery_is_as_published(preset: str) -> None:
    discovery = load_settings(preset).discovery
    references, coordinates, neighbours, held_out, shape = PUBLISHED[preset]
    assert (discovery.num_references, discovery.num_coordinates) == (references, coordinates)
    assert discovery.num_references * discovery.num_coordinates == (100 if preset == "paper-2d" else 44)  # classes
    assert discovery.num_neighbours == neighbours and discovery.cube_shape == shape
    assert held_out is None or discovery.num_validation_neighbours == held_out
    assert len(discovery.scales) == 3 and all(len(scale.extent_mm) == len(shape) for scale in discovery.scales)
    assert [bool(scale.shift_mm) for scale in discovery.scales] == [False, True, True]
    assert discovery.alignment == "none" and discovery.box is None


@pytest.mark.parametrize("preset", ["paper-3d", "released-3d"])
def test_the_three_scales_are_those_of_the_published_code_in_mm(preset: str) -> None:
    """One exact 64×64×32; two of 50–79 voxels in-plane, shifted by −10..+9, of the same z."""
    exact, *jittered = load_settings(preset).discovery.scales
    assert np.array(exact.extent_mm) == pytest.approx(np.array([32, 64, 64]) * LUNA16_MM, abs=0.5)
    assert (exact.extent_jitter, exact.shift_mm) == (0, 0)
    for scale in jittered:
        assert scale.extent_mm[0] == exact.extent_mm[0]
        for sign, voxels in ((-1, 50), (1, 79)):
            assert scale.extent_mm[1] * (1 + sign * scale.extent_jitter) / 0.7 == pytest.approx(voxels, abs=1)
        assert scale.shift_mm / 0.7 == pytest.approx(10, abs=0.5)


def test_released_3d_keeps_coordinates_five_voxels_apart() -> None:
    assert load_settings("released-3d").discovery.min_distance_mm == pytest.approx(5 * 0.7)


def test_paper_3d_is_the_default_but_for_the_window_the_gpu_and_the_fine_tuning() -> None:
    tree = load_settings("paper-3d").model_dump()
    tree["intensity"]["window"], tree["pretraining"]["use_gpu"] = None, False
    recipe = {"loss": "dice+cross-entropy", "augmentation": "standard", "weight_decay": 0.01, "schedule": "cosine"}
    tree["finetune"] |= {**recipe, "precision": "auto"}
    assert tree == Settings().model_dump()


@pytest.mark.parametrize("preset", PUBLISHED)
def test_fine_tuning_is_as_published(preset: str) -> None:
    """Soft Dice alone, by Adam at one rate, on what the scans show."""
    finetune = load_settings(preset).finetune
    assert finetune.schedule == "constant"
    assert (finetune.loss, finetune.weight_decay, finetune.augmentation) == ("dice", 0, "none")
    assert (finetune.precision, finetune.decoder_first, len(finetune.rates)) == ("fp32", None, 1)


def test_released_3d_is_one_coordinate_of_each_of_44_references() -> None:
    settings = load_settings("released-3d")
    discovery = settings.discovery
    assert (discovery.num_references, discovery.num_coordinates) == (44, 1)
    assert (discovery.num_neighbours, discovery.num_validation_neighbours) == (200, 30)
    assert discovery.cube_shape == (32, 64, 64)
    assert settings.pretraining.corruption == "semantic-genesis-released"


def test_paper_2d_is_100_coordinates_in_1000_patients() -> None:
    settings = load_settings("paper-2d")
    discovery = settings.discovery
    assert (discovery.num_references, discovery.num_coordinates, discovery.num_neighbours) == (1, 100, 1000)
    assert discovery.cube_shape == (224, 224) and settings.ndim == 2


@pytest.mark.parametrize("preset", NAMES)
def test_a_preset_s_pretext_task_exists_and_fits_its_cubes(preset: str) -> None:
    from raygenesis.pretraining.stores import check_pretext

    settings = load_settings(preset)
    check_pretext(settings.pretraining, settings.discovery)


@pytest.mark.parametrize(
    ("override", "words"),
    [("num_neighbours=25", ["the 24", "discovery.num_neighbours"]), ("num_coordinates=9", ["the 8"])],
)
def test_more_than_is_discovered_is_refused_before_it_is(override: str, words: list[str]) -> None:
    from raygenesis.pretraining.stores import check_pretext

    settings = load_settings("cpu-small", [f"pretraining.{override}"])
    with pytest.raises(SettingsError) as error:
        check_pretext(settings.pretraining, settings.discovery)
    assert all(word in str(error.value) for word in [f"pretraining.{override} is more", *words])
    other = load_settings("cpu-small", [f"pretraining.{override}", "pretraining.pretext=models-genesis"])
    check_pretext(other.pretraining, other.discovery)


@pytest.mark.parametrize("preset", NAMES)
def test_a_preset_says_only_what_it_changes(preset: str) -> None:
    said = leaves(yaml.safe_load((PRESETS / f"{preset}.yaml").read_text()))
    assert said and said.keys() <= DEFAULTS.keys()


@pytest.mark.parametrize("preset", NAMES)
def test_a_resolved_tree_is_a_preset_of_itself(preset: str, tmp_path: Path) -> None:
    overrides = ["seed=7", "pretraining.learning_rate=1e-7", r"archive.subject_pattern='(sub-\d+)_λ'"]
    for settings in (load_settings(preset), load_settings(preset, overrides)):
        path = tmp_path / "resolved.yaml"
        path.write_text(as_yaml(settings))
        assert load_settings(str(path)).model_dump() == settings.model_dump()
        assert as_yaml(load_settings(str(path))) == as_yaml(settings)
        assert leaves(yaml.safe_load(path.read_text())).keys() == DEFAULTS.keys()


def test_without_a_preset_s_keys_the_defaults_stand(tmp_path: Path) -> None:
    (tmp_path / "empty.yaml").write_text("# nothing\n")
    assert load_settings(str(tmp_path / "empty.yaml")) == Settings() == settings_from({})


@pytest.mark.parametrize("key", DEFAULTS)
def test_every_setting_can_be_given_on_the_command_line(key: str) -> None:
    text = yaml.safe_dump(DEFAULTS[key], default_flow_style=True).removesuffix("\n...\n").strip()
    assert values(load_settings("paper-3d", [f"{key}={text}"]), key) == values(Settings(), key)


def test_the_last_override_counts_and_the_others_stay() -> None:
    settings = load_settings("cpu-small", ["archive.chunk=32", "seed=1", "archive.chunk=16"])
    assert values(settings, "archive.chunk", "seed") == [16, 1]
    before = leaves(load_settings("cpu-small").model_dump())
    changed = {key for key, value in leaves(settings.model_dump()).items() if value != before[key]}
    assert changed == {"archive.chunk", "seed"}


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("pretraining.learning_rate=1e-4", 1e-4),  # a string in YAML 1.1
        ("pretraining.use_gpu=true", True),
        ("intensity.window=[-160, 240]", (-160.0, 240.0)),
        ("intensity.window=null", None),
        ("archive.subject_pattern=a=b", "a=b"),
        ("sweep.num_gpus=null", None),
        ("discovery.box=[[0.2, 0.8], [0, 0.5], [0, 1]]", ((0.2, 0.8), (0, 0.5), (0, 1))),
        ("finetune.learning_rate=[1e-3, 0.01]", (1e-3, 0.01)),
        ("finetune.learning_rate=1e-3", 1e-3),
        ("discovery.box=null", None),
        ("embedding.encoder=runs/default", "runs/default"),
        ("embedding.num_gpus=0.25", 0.25),
    ],
)
def test_an_override_s_value_is_yaml(override: str, value: Any) -> None:
    assert values(load_settings("cpu-small", [override]), override.partition("=")[0]) == [value]


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValidationError):
        Settings().archive.chunk = 3
    assert load_settings("cpu-small", ["seed=5"]) != load_settings("cpu-small")


@pytest.mark.parametrize("key", [key for key in DEFAULTS if len(key.split(".")[-1]) > 3])
def test_a_misspelt_key_is_answered_by_the_right_one(key: str) -> None:
    misspelt = key[:-2] + key[-1] + key[-2] if key[-1] != key[-2] else key + "x"
    assert refusal(f"{misspelt}=1") == f"unknown setting {misspelt!r}: did you mean {key!r}?"


def test_a_misspelt_key_within_a_list_too() -> None:
    sentence = refusal("discovery.scales=[{extent: [9, 9, 9]}]")
    assert sentence == "unknown setting 'discovery.scales.0.extent': did you mean 'discovery.scales.0.extent_mm'?"


def test_a_key_like_no_other_is_answered_by_all_of_its_place() -> None:
    sentence = refusal("archive.zzz=1")
    assert sentence == (
        "unknown setting 'archive.zzz': known here are subject_pattern, keep_ids, fourth_axis, uneven, spacing_mm, "
        "fill_nan, crop_to_body, max_scan_gib, coarse_size, chunk, shard"
    )
    assert "'nonsense': known here are seed, validation_fraction, archive" in refusal("nonsense=1")


@pytest.mark.parametrize(
    ("override", "sentence"),
    [
        ("archive.chunk=wide", "archive.chunk='wide' is not allowed: input should be a valid integer"),
        ("archive.chunk=0", "archive.chunk=0 is not allowed: input should be greater than or equal to 1"),
        ("archive.chunk=1.5", "archive.chunk=1.5 is not allowed: input should be a valid integer"),
        ("archive=5", "archive=5 is not allowed"),
        ("seed=-1", "seed=-1 is not allowed"),
        ("seed=null", "seed=None is not allowed"),
        ("validation_fraction=1", "validation_fraction=1 is not allowed: input should be less than 1"),
        ("pretraining.learning_rate=0", "pretraining.learning_rate=0 is not allowed: input should be greater than 0"),
        ("pretraining.learning_rate=.nan", "pretraining.learning_rate=nan is not allowed"),
        ("pretraining.learning_rate=.inf", "pretraining.learning_rate=inf is not allowed"),
        ("intensity.window=[.nan, 1]", "intensity.window.0=nan is not allowed"),
        ("intensity.window=[1]", "intensity.window"),
        ("pretraining.use_gpu=maybe", "pretraining.use_gpu='maybe' is not allowed"),
        ("pretraining.batch_size=1", "pretraining.batch_size=1 is not allowed"),
        ("pretraining.num_workers=many", "pretraining.num_workers='many' is not allowed"),
        ("pretraining.trackers=[paper]", "pretraining.trackers.0='paper' is not allowed"),
        ("index.method=flat", "index.method='flat' is not allowed: input should be 'auto', 'exact' or 'hnsw'"),
        ("index.min_recall=0", "index.min_recall=0 is not allowed: input should be greater than 0"),
        ("index.min_recall=1.1", "index.min_recall=1.1 is not allowed: input should be less than or equal to 1"),
        ("index.exact_limit=5", "unknown setting 'index.exact_limit'"),
        ("embedding.num_gpus=-1", "embedding.num_gpus=-1 is not allowed"),
        ("discovery.reference_choice=best", "discovery.reference_choice='best' is not allowed: input should be 'rand"),
        ("discovery.duplicate_distance=1", "discovery.duplicate_distance=1 is not allowed: input should be less"),
        ("discovery.alignment=deformable", "discovery.alignment='deformable' is not allowed: input should be 'none', "),
        ("discovery.box=[[0, 1, 2]]", "discovery.box.0=[0, 1, 2] is not allowed"),
        ("discovery.cube_shape=32", "discovery.cube_shape=32 is not allowed"),
        ("discovery.cube_shape=[32]", "discovery.cube_shape=[32] is not allowed: tuple should have at least 2"),
        ("discovery.scales=[]", "discovery.scales=[] is not allowed"),
        ("discovery.scales=[{shift_mm: 1}]", "discovery.scales.0.extent_mm is missing"),
        ("discovery.min_content=1", "discovery.min_content=1 is not allowed"),
        ("archive.chunk.side=3", "archive.chunk={'side': 3} is not allowed"),
    ],
)
def test_a_value_that_no_setting_takes_is_named(override: str, sentence: str) -> None:
    assert refusal(override).startswith(sentence)


@pytest.mark.parametrize(
    ("overrides", "keys"),
    [
        (["archive.chunk=48"], ["archive.shard=256", "archive.chunk=48"]),
        (["archive.subject_pattern='(sub'"], ["archive.subject_pattern='(sub'", "regular expression"]),
        (["intensity.window=[5, 5]"], ["intensity.window=[5.0, 5.0]", "low < high"]),
        (
            ["pretraining.num_classification_epochs=0", "pretraining.num_joint_epochs=0"],
            ["pretraining.num_classification_epochs", "pretraining.num_joint_epochs"],
        ),
        (
            ["pretraining.lambda_rec=0", "pretraining.lambda_cls=0"],
            ["pretraining.lambda_rec", "pretraining.lambda_cls"],
        ),
        (["pretraining.network=resnet18", "discovery.cube_shape=[32, 40, 32]"], ["[32, 40, 32]", "multiple of 32"]),
        (["pretraining.network=segresnet"], ["pretraining.base_width=4", "multiple of 8"]),
        (["pretraining.network=resnet18", "pretraining.norm=group"], ["pretraining.norm=group", "network=resnet18"]),
        (
            ["pretraining.network=i3d", "discovery.cube_shape=[32, 32]", "autoencoder.input_shape=[32, 32]"],
            ["pretraining.network=i3d", "discovery.cube_shape has 2"],
        ),
        (["pretraining.compile=true", "pretraining.gradient_checkpointing=true"], ["compile", "checkpointing"]),
        (["pretraining.num_workers=17"], ["pretraining.batch_size=16", "17 worker(s) (pretraining.num_workers)"]),
        (["pretraining.num_pieces=9", "pretraining.num_workers=[1,2]"], ["batch_size=16", "9 piece(s)", "2 worker(s)"]),
        (["pretraining.num_workers=[4, 2]"], ["pretraining.num_workers=[4, 2]", "the fewest first"]),
        (["pretraining.warmup_epochs=25"], ["pretraining.warmup_epochs=25", "25 epochs"]),
        (
            ["pretraining.scale_learning_rate=8"],
            ["pretraining.scale_learning_rate=8", "batches of 16", "warmup_epochs"],
        ),
        (["autoencoder.input_shape=[64, 64]"], ["autoencoder.input_shape=[64, 64]", "discovery.cube_shape"]),
        (["discovery.cube_shape=[32, 30, 32]"], ["discovery.cube_shape=[32, 30, 32]", "multiple of 8"]),
        (["autoencoder.input_shape=[32, 30, 32]"], ["autoencoder.input_shape=[32, 30, 32]", "multiple of 8"]),
        (["finetune.num_labelled=110%"], ["finetune.num_labelled"]),
        (["finetune.num_labelled=[5, 5]"], ["finetune.num_labelled=[5, 5]", "twice"]),
        (["finetune.num_labelled=0"], ["finetune.num_labelled", "=0"]),
        (["finetune.learning_rate=[0.1, 0.1]"], ["finetune.learning_rate=[0.1, 0.1]", "names a rate twice"]),
        (["finetune.learning_rate=[0.1]"], ["finetune.learning_rate=[0.1] must be several numbers greater than 0"]),
        (["finetune.learning_rate=[0.1, -1]"], ["finetune.learning_rate=[0.1, -1] must be several numbers greater"]),
        (["finetune.learning_rate=-1"], ["finetune.learning_rate=-1", "greater than 0"]),
        (["finetune.decoder_first=1"], ["finetune.decoder_first=1", "less than 1"]),
        (
            ["finetune.decoder_first=0.2", "finetune.mode=frozen"],
            ["finetune.decoder_first=0.2", "finetune.mode=frozen"],
        ),
        (["finetune.weight_decay=-1"], ["finetune.weight_decay=-1"]),
        (["finetune.loss=focal"], ["finetune.loss='focal'", "'dice+cross-entropy' or 'dice'"]),
        (["discovery.box=[[0, 1], [0, 1]]"], ["discovery.box has 2 sides", "discovery.cube_shape has 3"]),
        (["discovery.box=[[0, 1], [0.5, 0.5], [0, 1]]"], ["discovery.box=[[0.0, 1.0], [0.5, 0.5]", "from < to"]),
        (["discovery.box=[[0, 1], [0, 1.2], [0, 1]]"], ["discovery.box=", "<= 1"]),
        (["discovery.box=[[-0.1, 1], [0, 1], [0, 1]]"], ["discovery.box=", "0 <= from"]),
        (["discovery.scales=[{extent_mm: [9, 9]}]"], ["discovery.scales", "extent_mm=[9.0, 9.0]", "cube_shape"]),
        (["sweep.num_classification_epochs=0", "sweep.num_joint_epochs=0"], ["sweep.num_joint_epochs", "at least 1"]),
        (["sweep.num_gpus=1.5"], ["sweep.num_gpus=1.5 is not allowed: give a fraction below 1 or a whole number"]),
        (["embedding.num_gpus=2.5"], ["embedding.num_gpus=2.5 is not allowed: give a fraction below 1"]),
        (["sweep.objective=target"], ["sweep.objective=target", "give sweep.target"]),
    ],
)
def test_an_impossible_combination_names_its_keys(overrides: list[str], keys: list[str]) -> None:
    sentence = refusal(*overrides)
    assert all(key in sentence for key in keys), sentence


@pytest.mark.parametrize("override", ["", "seed", "=1", "archive.chunk 3"])
def test_what_is_not_an_override_is_said(override: str) -> None:
    assert refusal(override) == f"{override!r} is not a setting: write key.path=value"


def test_bad_yaml_and_keys_below_values_are_said() -> None:
    assert refusal("seed=[1") == "seed: '[1' is not a YAML value"
    assert refusal("discovery.scales.0.shift_mm=1").startswith("discovery.scales.0.shift_mm: 'scales' is a value")


def test_a_preset_that_is_not_there_lists_those_that_are(tmp_path: Path) -> None:
    for preset in ("paper3d", str(tmp_path / "mine.yaml"), str(tmp_path), ""):
        assert "is neither a YAML file nor one of: cpu-medium, cpu-small, cpu-small-2d, gpu-recommended" in refusal(
            preset=preset
        )


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"a: [", "is not valid YAML"),
        (b"\xff", "is not valid YAML"),
        (b"- 1", "must hold a mapping of settings, not a list"),
        (b"1: 2", "keys should be strings"),
        (b"archive: {chnk: 3}", "unknown setting 'archive.chnk': did you mean 'archive.chunk'?"),
    ],
)
def test_a_preset_file_s_mistakes_are_said(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "mine.yaml"
    path.write_bytes(content)
    assert words in refusal(preset=str(path))
