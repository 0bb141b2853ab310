"""The parts of a study before fine-tuning: the check of its plan, the stores of cubes, and every pretraining."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass

from raygenesis.cluster.progress import say
from raygenesis.cluster.work import Announce
from raygenesis.discovery.crop import crop
from raygenesis.discovery.discover import discover
from raygenesis.discovery.embed import embed
from raygenesis.errors import SettingsError
from raygenesis.patterns.reader import predicate, read_patterns
from raygenesis.patterns.schema import TRAINING
from raygenesis.pretraining.pretexts import PRETEXTS, pretext_of
from raygenesis.pretraining.pretrain import pretrain
from raygenesis.pretraining.stores import check_pretext, pretext_task, with_store_settings
from raygenesis.settings import PretrainingSettings, Settings, settings_from
from raygenesis.studies.plan import PlannedInitialisation, StudyPlan
from raygenesis.training.order import cubes_of_epoch
from raygenesis.transfer.description import Description
from raygenesis.transfer.initialisations import (
    RANDOM,
    SEPARATOR,
    check_all_used,
    check_fits,
    find_initialisations,
    is_path,
    name_and_source,
    sources_in,
)
from raygenesis.transfer.resolved import resolve_target
from raygenesis.transfer.runs import Run, runs_of
from raygenesis.workspace.artifacts import CROPS, PATTERNS, RUNS
from raygenesis.workspace.workspace import Workspace

# The cubes of a pretraining may differ from the plan's by this share, as epochs are whole.
MAX_DEVIATION = 0.1


@dataclass(frozen=True)
class Study:
    """A plan to carry out: its name, its targets by name, where, and with which settings."""

    name: str
    plan: StudyPlan
    targets: Mapping[str, Description]
    workspace: Workspace
    settings: Settings
    announce: Announce

    def transfer_name(self, target: str) -> str:
        """The name under which a target's results are kept."""
        return f"{self.name}-{target}"

    def settings_of(self, initialisation: PlannedInitialisation, **pretraining: int) -> Settings:
        """The settings of a pretext task's training, with what is given below `pretraining` instead."""
        tree = self.settings.model_dump(mode="json")
        tree["pretraining"] |= {"pretext": initialisation.pretext, **initialisation.settings, **pretraining}
        return settings_from(tree, self.settings.given)


@dataclass(frozen=True)
class ReadyInitialisation:
    """An initialisation that is ready.

    source: as `finetune` takes it, the runs of several seeds with commas between them. cubes: seen over all epochs of
    each pretraining, 0 if not pretrained here.
    """

    title: str
    source: str
    cubes: int = 0


def check_study(study: Study) -> None:
    """Raise a RaygenesisError that names what is at fault: a pretext task, a target, weights, or a pair of them."""
    workspace, settings, initialisations = study.workspace, study.settings, study.plan.initialisations
    given = [f"{each.title}={each.weights}" for each in initialisations if each.weights is not None]
    for source in (each for weights in given for each in sources_in(name_and_source(weights)[1]) if each != RANDOM):
        if not is_path(source) and not RUNS.read(workspace.run(source)):
            close = difflib.get_close_matches(source, PRETEXTS, n=1)
            hint = f" (did you mean {close[0]}?)" if close else ""
            raise SettingsError(
                f"initialisations: {source!r} is neither a pretext task{hint}, nor a finished run in "
                f"{workspace.root}/runs, nor a file of weights"
            )
    pretrained = {each.title: study.settings_of(each) for each in initialisations if each.pretext is not None}
    for title, chosen in pretrained.items():
        artifact = pretext_of(chosen.pretraining).store
        store = artifact.read(workspace.folder(artifact))
        pretrained[title] = chosen if store is None else with_store_settings(chosen, store)
        check_pretext(pretrained[title].pretraining, pretrained[title].discovery, store)
    runs = [*runs_of(given, workspace), *(Run(title, workspace, chosen) for title, chosen in pretrained.items())]
    for title, description in study.targets.items():
        workspace.transfer(study.transfer_name(title))  # raises if it cannot be the name of a folder
        target = resolve_target(description, workspace, settings, runs)
        found = find_initialisations(given, workspace, settings.pretraining, target.target.ndim)
        for chosen in pretrained.values():
            found += find_initialisations([RANDOM], workspace, chosen.pretraining, settings.ndim)
        for initialisation in found:
            check_fits(initialisation, target.form.input_shape, target.settings.finetune)
            check_all_used(initialisation.name, len(initialisation.sources), target.settings.finetune.num_trials)
        for each in initialisations:
            check_all_used(each.title, each.seeds, target.settings.finetune.num_trials)


def make_stores(study: Study) -> None:
    """Make patterns and random crops, each where a pretext task of the plan learns from it and there is none yet."""
    pretexts = [each.pretext for each in study.plan.initialisations if each.pretext is not None]
    sources = {PRETEXTS[pretext].store for pretext in pretexts}
    workspace, settings = study.workspace, study.settings
    if PATTERNS in sources and PATTERNS.read(workspace.patterns) is None:
        embed(workspace, settings, announce=study.announce)
        discover(workspace, settings, study.announce)
    if CROPS in sources and CROPS.read(workspace.crops) is None:
        crop(workspace, settings, study.announce)


def pretrain_initialisation(study: Study, planned: PlannedInitialisation) -> ReadyInitialisation:
    """Pretrain a planned initialisation for as many whole epochs as come nearest to the plan's cubes, with each seed.

    The seed of pretraining number k is k more than that of the settings. What has weights already is returned as it is.
    """
    if planned.weights is not None:
        return ReadyInitialisation(planned.title, planned.weights)
    chosen = study.settings_of(planned)
    pretraining = chosen.pretraining
    store = pretext_of(pretraining).store
    folder = study.workspace.folder(store)
    selected = predicate(TRAINING, pretraining.num_neighbours, pretraining.num_coordinates)
    scales = read_patterns(folder, ["scale"], selected)["scale"].to_numpy()

    def cubes_by_epoch(pretraining: PretrainingSettings) -> list[int]:
        task = pretext_task(pretraining, study.settings.seed, store.require(folder))
        kept = (task.learns_from({"scale": scales}, epoch) for epoch in range(task.num_epochs))
        numbers = (len(scales) if keep is None else int(keep.sum()) for keep in kept)
        return [cubes_of_epoch(number, task.batch_size)[1] for number in numbers]

    by_epoch = cubes_by_epoch(pretraining)
    cubes_per_epoch = sum(by_epoch) / len(by_epoch)
    num_epochs = max(1, round(study.plan.cubes / cubes_per_epoch))
    epochs = epochs_by_phase(pretraining, num_epochs)
    cubes = sum(cubes_by_epoch(study.settings_of(planned, **epochs).pretraining))
    is_far = abs(cubes / study.plan.cubes - 1) > MAX_DEVIATION
    say(
        "compare",
        f"{planned.title}: {num_epochs} epochs of {cubes_per_epoch:.0f} cubes, {cubes} in all"
        + f"; warning: far from the plan's cubes={study.plan.cubes}, which should be many epochs" * is_far,
    )
    runs = [f"{study.name}-{planned.title}-{number}".replace("+", "-") for number in range(planned.seeds)]
    for number, run in enumerate(runs):
        # The first keeps null, where it is, so that the seed of all stages counts; none of them changes the split.
        seed = {"seed": chosen.pretraining_seed + number} if number else {}
        pretrain(study.workspace, study.settings_of(planned, **epochs, **seed), run, announce=study.announce)
    return ReadyInitialisation(planned.title, SEPARATOR.join(runs), cubes)


def epochs_by_phase(pretraining: PretrainingSettings, num_epochs: int) -> dict[str, int]:
    """Settings below `pretraining` that spend so many epochs, all of them, in the settings' proportion of phases."""
    pretext, alone = pretext_of(pretraining), 0
    if pretext.puzzle is not None and len(pretext.parts) > 1:
        both = pretraining.num_classification_epochs + pretraining.num_joint_epochs
        alone = min(num_epochs - 1, round(num_epochs * pretraining.num_classification_epochs / both))
    return {"num_classification_epochs": alone, "num_joint_epochs": num_epochs - alone, "patience": num_epochs}
