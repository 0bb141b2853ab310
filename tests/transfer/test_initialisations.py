"""What networks begin with: found by name, alike where they can be, and refused where they do not fit."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from raygenesis.errors import RaygenesisError, SettingsError, WorkspaceError
from raygenesis.networks.architecture import Architecture
from raygenesis.networks.network import PretextNetwork, UNet
from raygenesis.networks.slice_wise import slices_of
from raygenesis.settings import FinetuneSettings, PretrainingSettings
from raygenesis.transfer.initialisations import (
    Initialisation,
    check_all_used,
    check_fits,
    classification_network,
    find_initialisations,
    name_and_source,
    new_decoder,
    segmentation_network,
    target_encoder,
)
from raygenesis.workspace.files import xxh3_of
from raygenesis.workspace.workspace import Workspace
from tests.support.cases import flat, write_run

NARROW = PretrainingSettings(base_width=4)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Workspace, dict[str, PretextNetwork]]:
    """Runs of 3D and 2D networks, of one without a decoder, of one without skips, and of one that projects pairs."""
    workspace = Workspace.open(tmp_path_factory.mktemp("runs"))
    kinds = {"default": {}, "flat": {"ndim": 2}, "headless": {"restores": False}, "skipless": {"skips": False}}
    kinds["paired"] = {"projection_size": 4}
    return workspace, {name: write_run(workspace.run(name), **kind) for name, kind in kinds.items()}


def found(runs: tuple[Workspace, dict], *starts: str, ndim: int = 3) -> list[Initialisation]:
    return find_initialisations(starts, runs[0], NARROW, ndim)


def start(architecture: Architecture, name: str = "random") -> Initialisation:
    return Initialisation(name, None, architecture, "")


def test_runs_files_and_random_weights_are_found_in_their_order(runs) -> None:
    file = runs[0].run("flat") / "encoder.safetensors"
    ours, random, flat_random, flat_file = found(runs, "default", "random", f"theirs={file}")
    assert [each.name for each in (ours, random, flat_random, flat_file)] == [
        "default", "random", "random-2d", "theirs",
    ]  # fmt: skip
    assert (ours.random, flat_file.random) == ("random", "random-2d")
    assert (ours.weights, random.weights, flat_file.weights) == (runs[0].run("default"), None, file)
    assert (ours.fingerprint, flat_file.fingerprint) == ("of default", xxh3_of(file))
    assert random.architecture == replace(ours.architecture, head=None, num_classes=0)
    assert flat_random.architecture.ndim == 2
    assert flat_file.architecture.ndim == 2


def test_random_weights_alone_are_of_the_settings_network(runs) -> None:
    (random,) = found(runs, "random", ndim=2)
    assert random.architecture == Architecture(ndim=2, base_width=4)
    other = find_initialisations(["random"], runs[0], PretrainingSettings(base_width=8), 2)[0]
    assert random.fingerprint != other.fingerprint


@pytest.mark.parametrize(("given", "name", "source"), [
    ("random", "random", "random"), ("my-run.2", "my-run.2", "my-run.2"), ("a/Genesis_Chest_CT.pt", "Genesis_Chest_CT",
     "a/Genesis_Chest_CT.pt"), ("a b.safetensors", "a-b", "a b.safetensors"), ("mine=run", "mine", "run"),
    ("mine=a/b=c.pt", "mine", "a/b=c.pt"), ("~/x.tar", "x", "~/x.tar"),
])  # fmt: skip
def test_what_tables_call_it(given: str, name: str, source: str) -> None:
    assert name_and_source(given) == (name, source)


@pytest.mark.parametrize("starts", [("default", "default"), ("random", "random"), ("x=default", "x=random")])
def test_two_of_one_name_are_refused_unless_one_gets_another(runs, starts: Sequence[str]) -> None:
    with pytest.raises(
        SettingsError, match=rf"two .* called '{name_and_source(starts[0])[0]}': leave one out, or name it, NAME"
    ):
        found(runs, *starts)
    assert len(found(runs, starts[0], f"another={starts[1].rpartition('=')[2]}")) == 2


def test_what_is_not_there_is_named(runs, tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match=r"runs/nobody is not there or not finished: run `raygenesis pretrain`"):
        found(runs, "nobody")
    with pytest.raises(RaygenesisError, match=r"no\.safetensors does not exist"):
        found(runs, f"{tmp_path}/no.safetensors")
    (tmp_path / "bad.safetensors").write_bytes(b"not at all")
    with pytest.raises(RaygenesisError, match=r"bad\.safetensors is not a safetensors file, or is damaged"):
        found(runs, f"{tmp_path}/bad.safetensors")


def test_a_path_may_begin_at_home(runs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(runs[0].run("default")))
    (ours,) = found(runs, "~/encoder.safetensors")
    assert ours.name == "encoder" and ours.weights == runs[0].run("default") / "encoder.safetensors"


def test_a_run_of_another_workspace_is_its_folder(runs) -> None:
    folder = runs[0].run("default")
    (ours,) = found(runs, str(folder))
    assert ours.name == "default" and ours.weights == folder / "encoder.safetensors"


@pytest.mark.parametrize(("architecture", "shape", "said"), [
    (Architecture(), (64, 64), "initialisation x is a 3D network and the target's images are 2D: leave it out"),
    (Architecture(), (32, 60, 64), r"finetune.input_shape=\[32, 60, 64\]: initialisation x \(unet\) needs .* of 8"),
    (Architecture(network="resnet18"), (32, 40, 64), r"x \(resnet18\) needs sides that are multiples of 32"),
    (Architecture(ndim=2), (5, 60, 64), r"needs sides that are multiples of 8"),
])  # fmt: skip
def test_inputs_that_do_not_fit_are_refused(architecture: Architecture, shape: Sequence[int], said: str) -> None:
    with pytest.raises(SettingsError, match=said):
        check_fits(start(architecture, "x"), shape, FinetuneSettings(mode="full"))


@pytest.mark.parametrize(("architecture", "shape"), [
    (Architecture(), (8, 16, 64)), (Architecture(ndim=2), (5, 16, 64)), (Architecture(ndim=2), (8, 64)),
    (Architecture(network="resnet18"), (32, 32, 64)),
])  # fmt: skip
def test_inputs_that_fit_are_not(architecture: Architecture, shape: Sequence[int]) -> None:
    check_fits(start(architecture), shape, FinetuneSettings(mode="frozen"))


@pytest.mark.parametrize(("ndim", "shape"), [(3, (8, 8, 8)), (2, (8, 8)), (2, (1, 8, 8))])
def test_one_voxel_has_no_statistics_of_its_own(ndim: int, shape: Sequence[int]) -> None:
    norm = start(Architecture(ndim=ndim, norm="batch-statistics"), "x")
    for mode in ("frozen", "knn"):
        with pytest.raises(SettingsError, match=r"input_shape=\[.*\]: initialisation x .* a bottleneck of one voxel"):
            check_fits(norm, shape, FinetuneSettings(mode=mode))
    check_fits(norm, shape, FinetuneSettings(mode="full"))
    check_fits(norm, (*shape[:-1], 16), FinetuneSettings(mode="knn"))
    check_fits(start(Architecture(ndim=ndim)), shape, FinetuneSettings(mode="knn"))


def test_levels_of_a_decoder_are_read_of_our_u_net_alone() -> None:
    both = FinetuneSettings(mode="probe", probe_features="encoder+decoder")
    check_fits(start(Architecture()), (32, 32, 32), both)
    resnet = start(Architecture(network="resnet18"), "x")
    check_fits(resnet, (32, 32, 32), FinetuneSettings(mode="probe"))
    with pytest.raises(SettingsError, match=r"probe_features=encoder\+decoder .* x is of pretraining.network=resnet18"):
        check_fits(resnet, (32, 32, 32), both)


@pytest.mark.parametrize("kind", ["classifier", "segmenter"])
def test_what_is_trained_learns_statistics_that_it_answers_by(tmp_path: Path, kind: str) -> None:
    """One that knows a batch's alone, as published ones do, trains as it is, and then tells each case by itself."""
    network = write_run(tmp_path / "theirs", norm="batch-statistics")
    given = Initialisation("theirs", tmp_path / "theirs", network.architecture, "")
    images = torch.rand(3, 1, 16, 16, 16)
    if kind == "classifier":
        ours = classification_network(given, 2, 1, 3)
        expected = ours.head(network.train().encoder(images)[-1].mean((2, 3, 4)))
    else:
        ours = segmentation_network(given, 2, "full", 1, 3)
        decoder = UNet(2, network.architecture).decoder
        decoder.load_state_dict(network.decoder.state_dict() | ours.decoder.output.state_dict(prefix="output."))
        expected = decoder.train()(network.train().encoder(images))
    torch.testing.assert_close(ours.train()(images), expected)
    with torch.no_grad():
        together, alone = ours.eval()(images), torch.cat([ours(image) for image in images.split(1)])
    torch.testing.assert_close(together, alone)


@pytest.mark.parametrize("mode", ["full", "encoder", "frozen"])
def test_initialisations_share_the_output_layer_and_bring_their_own_weights(runs, mode: str) -> None:
    given, random = found(runs, "default", "random")
    ours, theirs, other = (
        segmentation_network(start, 3, mode, seed, 3) for start, seed in ((given, 1), (random, 1), (random, 2))
    )
    pretrained = runs[1]["default"]
    assert torch.equal(flat(ours.encoder), flat(pretrained.encoder))
    assert torch.equal(flat(ours.decoder.output), flat(theirs.decoder.output))
    assert not torch.equal(flat(other.decoder.output), flat(theirs.decoder.output))
    for part in (ours.decoder.levels, ours.decoder.ups):
        name = "levels" if part is ours.decoder.levels else "ups"
        brought = mode == "full"
        assert torch.equal(flat(part), flat(getattr(pretrained.decoder, name))) == brought
        assert torch.equal(flat(part), flat(getattr(theirs.decoder, name))) != brought


def test_random_weights_are_those_of_a_new_network_and_of_the_seed_alone(runs) -> None:
    random = start(Architecture(base_width=2))
    torch.manual_seed(5)
    expected = UNet(3, random.architecture)
    torch.manual_seed(99)
    assert torch.equal(flat(segmentation_network(random, 3, "full", 5, 3)), flat(expected))
    assert torch.equal(flat(target_encoder(random, 5, 3)), flat(expected.encoder))


def test_the_fingerprint_of_random_weights_is_what_it_was_before_decoders_could_lack_skips(runs) -> None:
    """Trials that were made then are kept."""
    for sources in (("random",), ("skipless", "random"), ("paired", "random"), ("random", "default")):
        random = next(each for each in found(runs, *sources) if each.weights is None)
        width = 4 if sources == ("random",) else 2
        assert random.fingerprint == (
            f"Architecture(ndim=3, network='unet', base_width={width}, norm='batch', head=None, num_classes=0, "
            "restores=True)"
        )
        assert random.architecture.skips


def test_a_decoder_that_a_unet_cannot_go_on_from_is_told_where_it_would_be_taken(runs) -> None:
    ours, headless, skipless, random = found(runs, "default", "headless", "skipless", "random")
    assert (
        new_decoder(headless, True)
        == "initialisation headless holds no decoder: its U-Net's begins with random weights"
    )
    assert "skipless holds a decoder without skips: its U-Net's begins with random" in new_decoder(skipless, True)
    assert new_decoder(ours, True) is None and new_decoder(random, True) is None
    assert new_decoder(skipless, False) is None  # a new one in any case
    taken = {"full": True, "encoder": False, "frozen": False, "probe": False, "knn": False}
    assert {mode: FinetuneSettings(mode=mode).takes_decoder for mode in taken} == taken
    assert FinetuneSettings(mode="probe", probe_features="encoder+decoder").takes_decoder


@pytest.mark.parametrize("kind", ["headless", "skipless"])
def test_without_a_decoder_its_own_is_that_of_random_weights(runs, kind: str) -> None:
    given = found(runs, kind)[0]
    ours = segmentation_network(given, 3, "full", 1, 3)
    theirs = segmentation_network(start(given.architecture), 3, "full", 1, 3)
    assert torch.equal(flat(ours.decoder), flat(theirs.decoder))
    assert torch.equal(flat(ours.encoder), flat(runs[1][kind].encoder))
    assert ours(torch.rand(2, 1, 8, 8, 8)).shape == (2, 3, 8, 8, 8)


def test_classifiers_share_the_head_over_their_own_encoders(runs) -> None:
    given, random = found(runs, "default", "random")
    ours, theirs, other = (
        classification_network(start, 4, seed, 3) for start, seed in ((given, 1), (random, 1), (random, 2))
    )
    assert torch.equal(flat(ours.head), flat(theirs.head)) and not torch.equal(flat(other.head), flat(theirs.head))
    assert torch.equal(flat(ours.encoder), flat(runs[1]["default"].encoder))
    assert not torch.equal(flat(ours.encoder), flat(theirs.encoder))


def test_a_classifier_is_mean_over_space_then_1024_units_then_classes(runs) -> None:
    network = classification_network(found(runs, "default")[0], 4, 1, 3).eval()
    images = torch.rand(2, 1, 8, 16, 8)
    first, last = network.head[0], network.head[2]
    assert first.out_features == 1024 and last.out_features == 4
    pooled = runs[1]["default"].eval().encoder(images)[-1].mean((2, 3, 4))
    assert torch.allclose(network(images), last(torch.relu(first(pooled))), atol=1e-5)


def test_building_does_not_touch_the_callers_generator(runs) -> None:
    given = found(runs, "default")[0]
    before = torch.random.get_rng_state()
    segmentation_network(given, 3, "full", 1, 3)
    classification_network(given, 3, 1, 3)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_a_2d_network_takes_volumes_slice_by_slice(runs) -> None:
    given = found(runs, "flat")[0]
    flat_network, volumes = (segmentation_network(given, 3, "full", 1, ndim).eval() for ndim in (2, 3))
    images = torch.rand(2, 1, 5, 16, 8)
    with torch.inference_mode():
        answers = volumes(images)
        assert answers.shape == (2, 3, 5, 16, 8)
        assert torch.allclose(slices_of(answers), flat_network(slices_of(images)), atol=1e-5)
        embedded = target_encoder(given, 1, 3).eval().embed(images)
        of_slices = target_encoder(given, 1, 2).eval().embed(slices_of(images)).unflatten(0, (2, 5))
    assert torch.allclose(embedded, of_slices.mean(1), atol=1e-5)


def test_trials_take_several_pretrainings_of_one_initialisation_in_turn(runs, tmp_path: Path) -> None:
    file = runs[0].run("default") / "encoder.safetensors"
    write_run(runs[0].run("second"))
    random, ours = found(runs, "random", f"ours=default,second,{file}")
    assert [each.source for each in ours.sources] == [0, 1, 2] and not any(each.others for each in ours.sources)
    assert {each.name for each in ours.sources} == {"ours"} and {each.random for each in (ours, random)} == {"random"}
    begun = [ours.of_trial(number) for number in range(5)]
    assert [each.source for each in begun] == [0, 1, 2, 0, 1]
    folders = [runs[0].run(name) for name in ("default", "second")]
    assert [each.weights for each in begun] == [*folders, file, *folders]
    assert [each.fingerprint for each in begun[:3]] == ["of default", "of second", xxh3_of(file)]
    assert ours.all_fingerprints == f"of default,of second,{xxh3_of(file)}" and random.sources == (random,)
    assert name_and_source("default,w/x.pt") == ("default-x", "default,w/x.pt")


def test_a_path_may_hold_a_comma(runs, tmp_path: Path) -> None:
    folder = tmp_path / "a,b"
    write_run(folder)
    (ours,) = found(runs, f"ours={folder}/encoder.safetensors")
    assert ours.weights == folder / "encoder.safetensors" and ours.others == ()


@pytest.mark.parametrize(("sources", "said"), [
    ("default,flat", "initialisation x: default and flat are networks of different architectures: give only"),
    ("default,random", "initialisation x: random is no pretraining: give it by itself, --from random"),
    ("default,default", "initialisation x: default is given twice: leave one out"),
    ("default,nobody", "nobody is not there or not finished"),
])  # fmt: skip
def test_sources_that_do_not_go_together_are_one_sentence(runs, sources: str, said: str) -> None:
    with pytest.raises(RaygenesisError) as error:
        found(runs, f"x={sources}")
    assert said in str(error.value) and "\n" not in str(error.value)


def test_fewer_trials_than_pretrainings_are_refused() -> None:
    check_all_used("x", 3, 3)
    with pytest.raises(SettingsError, match=r"^finetune\.num_trials=2 is fewer than the 3 pretrainings of x: raise"):
        check_all_used("x", 3, 2)
