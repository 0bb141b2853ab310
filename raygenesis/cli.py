"""`raygenesis <verb>`: thin, no logic."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from raygenesis._version import __version__
from raygenesis.errors import RaygenesisError
from raygenesis.text.names import printable
from raygenesis.workspace.hardware import MIB_PER_S

if TYPE_CHECKING:
    from raygenesis.settings import Settings
    from raygenesis.workspace.workspace import Workspace

HELP = "Self-supervised pretraining of medical-image encoders by Semantic Genesis, on Ray."

app = typer.Typer(no_args_is_help=True, pretty_exceptions_enable=False, help=HELP)
archive_app = typer.Typer(no_args_is_help=True, help="Look into an archive.")
app.add_typer(archive_app, name="archive")
patterns_app = typer.Typer(no_args_is_help=True, help="Look into a pattern store.")
app.add_typer(patterns_app, name="patterns")

weights_app = typer.Typer(no_args_is_help=True, help="Look into weights, or write them for other code.")
app.add_typer(weights_app, name="weights")

OVERRIDES_HELP = "Override settings, e.g. pretraining.num_workers=2. List: `raygenesis config --reference`."

Scans = Annotated[Path, typer.Option(help="Folder of scans (DICOM, NIfTI, …), searched through.")]
WorkspaceOption = Annotated[str, typer.Option("--workspace", help="Folder, or s3://bucket/prefix, of all results.")]
KeepIds = Annotated[bool, typer.Option("--keep-ids", help="Keep subjects' names and paths instead of keyed hashes.")]
Rehash = Annotated[bool, typer.Option("--rehash", help="Read every file of a target again, whatever its times.")]


def _presets(incomplete: str) -> list[str]:
    from raygenesis.settings.completion import complete_preset

    return complete_preset(incomplete)


def _keys(incomplete: str) -> list[str]:
    from raygenesis.settings.completion import complete_setting

    return complete_setting(incomplete)


Preset = Annotated[str, typer.Option(help="Name of a preset, or a YAML file of settings.", autocompletion=_presets)]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[key.path=value]...", help=OVERRIDES_HELP, autocompletion=_keys)
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON, for other programs.")]
Name = Annotated[str, typer.Option(help="Name of the pretraining run.")]

WeightsFile = Annotated[str, typer.Argument(help="A run's folder, its encoder.safetensors, or a published .pt file.")]
StoreOption = Annotated[Literal["patterns", "crops"], typer.Option("--store", help="Discovered, or random crops.")]

DEFAULT_PRESET = "cpu-small"


@app.command("run")
def run_command(
    scans: Scans, workspace: WorkspaceOption, overrides: Overrides = None, preset: Preset = DEFAULT_PRESET,
    name: Name = "default", keep_ids: KeepIds = False,
    sweeps: Annotated[bool, typer.Option("--sweep", help="Sweep too, and pretrain with the best settings.")] = False,
    target: Annotated[Path | None, typer.Option(help="YAML file of a target task to learn at the end.")] = None,
) -> None:  # fmt: skip
    """The main job: scans in, pretrained encoder and report out. Run it again to continue."""
    from raygenesis.pipeline import Extras, job, run

    settings, place = _settings(preset, overrides, keep_ids), _open(workspace, scans)
    with job("run", place, settings) as announce:
        run(scans, place, settings, name, Extras(sweeps, target), announce)


@app.command("ingest")
def ingest_command(
    scans: Scans, workspace: WorkspaceOption, overrides: Overrides = None, preset: Preset = DEFAULT_PRESET,
    keep_ids: KeepIds = False,
    prune: Annotated[bool, typer.Option("--prune", help="Remove volumes whose files are gone.")] = False,
) -> None:  # fmt: skip
    """Scans → OME-Zarr archive with a catalogue and a failures table. Run it again to add what is new."""
    from raygenesis.archive.ingest import ingest
    from raygenesis.pipeline import job

    settings, place = _settings(preset, overrides, keep_ids), _open(workspace, scans)
    with job("ingest", place, settings) as announce:
        ingest(scans, place, settings, prune, announce=announce)


@archive_app.command("info")
def archive_info_command(
    workspace: WorkspaceOption,
    failures: Annotated[
        bool, typer.Option("--failures", help="List every failure with its file, those of later stages too.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Counts, sizes, spacings, modalities, and failures by cause."""
    if as_json:
        from raygenesis.archive.facts import archive_facts

        _print_json(archive_facts(_existing(workspace)))
        return
    from raygenesis.archive.inspection import info

    for line in info(_existing(workspace), failures):
        typer.echo(line)


@archive_app.command("verify")
def archive_verify_command(workspace: WorkspaceOption) -> None:
    """Read every volume again and compare it with the catalogue."""
    from raygenesis.archive.inspection import verify
    from raygenesis.cluster.job import recorded

    place = _existing(workspace)
    with recorded("verify", place):
        verify(place)


@archive_app.command("show")
def archive_show_command(
    workspace: WorkspaceOption,
    output: Annotated[Path, typer.Option(help="The PNG to write.")] = Path("archive.png"),
    volumes: Annotated[int, typer.Option(min=1, help="Maximum number of volumes.")] = 64,
) -> None:
    """A contact sheet of mid-slices."""
    from raygenesis.archive.inspection import show

    show(_existing(workspace), output, volumes)


@app.command("embed")
def embed_command(
    workspace: WorkspaceOption, overrides: Overrides = None, preset: Preset = DEFAULT_PRESET,
    encoder: Annotated[
        str | None, typer.Option(help="autoencoder, pca, or the path of raygenesis weights; embedding.encoder.")
    ] = None,
    output: Annotated[str | None, typer.Option(help="Folder for the embeddings instead of the workspace's.")] = None,
) -> None:  # fmt: skip
    """Archive → embeddings; trains the auto-encoder when there is none. Run it again for an archive that has grown."""
    from raygenesis.discovery.embed import embed
    from raygenesis.pipeline import job

    chosen = [] if encoder is None else [f"embedding.encoder={encoder}"]
    settings, place = _settings(preset, [*(overrides or []), *chosen]), _existing(workspace)
    with job("embed", place, settings) as announce:
        embed(place, settings, output, announce)


@app.command("neighbours")
def neighbours_command(
    workspace: WorkspaceOption, overrides: Overrides = None, preset: Preset = DEFAULT_PRESET,
    volume: Annotated[str | None, typer.Option(help="Only show the nearest scans of this one; its id.")] = None,
    k: Annotated[int | None, typer.Option("--k", min=1, help="With --volume: how many of them; 10 by default.")] = None,
    output: Annotated[Path | None, typer.Option(help="With --volume: the HTML page to write.")] = None,
) -> None:  # fmt: skip
    """Embeddings → each scan's nearest, duplicates, outliers, groups. Run it again for an archive that has grown."""
    if volume is not None:
        from raygenesis.report.nearest import show_nearest

        for line in show_nearest(_existing(workspace), volume, k, output):
            typer.echo(line)
        return
    from raygenesis.discovery.find_neighbours import find_neighbours
    from raygenesis.pipeline import job

    settings, place = _settings(preset, overrides), _existing(workspace)
    with job("neighbours", place, settings) as announce:
        find_neighbours(place, settings, announce)


@app.command("discover")
def discover_command(workspace: WorkspaceOption, overrides: Overrides = None, preset: Preset = DEFAULT_PRESET) -> None:
    """Neighbours → labelled pattern store; finds the neighbours where they are not there."""
    from raygenesis.discovery.discover import discover
    from raygenesis.pipeline import job

    settings, place = _settings(preset, overrides), _existing(workspace)
    with job("discover", place, settings) as announce:
        discover(place, settings, announce)


@app.command("crop")
def crop_command(workspace: WorkspaceOption, overrides: Overrides = None, preset: Preset = DEFAULT_PRESET) -> None:
    """Archive → random crops, for pretext tasks that need no discovery."""
    from raygenesis.discovery.crop import crop
    from raygenesis.pipeline import job

    settings, place = _settings(preset, overrides), _existing(workspace)
    with job("crop", place, settings) as announce:
        crop(place, settings, announce)


@patterns_app.command("info")
def patterns_info_command(workspace: WorkspaceOption, store: StoreOption = "patterns", as_json: AsJson = False) -> None:
    """Counts, classes, scales, bytes, speed of writing, and failures by reason."""
    from raygenesis.patterns.inspection import info, store_facts
    from raygenesis.patterns.reader import STORES

    if as_json:
        _print_json(store_facts(_existing(workspace), STORES[store]))
        return
    for line in info(_existing(workspace), STORES[store]):
        typer.echo(line)


@patterns_app.command("verify")
def patterns_verify_command(workspace: WorkspaceOption, store: StoreOption = "patterns") -> None:
    """Read every part again and compare it with the manifest."""
    from raygenesis.cluster.job import recorded
    from raygenesis.patterns.reader import STORES
    from raygenesis.patterns.verification import verify

    place = _existing(workspace)
    with recorded("verify", place):
        verify(place, STORES[store])


@patterns_app.command("show")
def patterns_show_command(
    workspace: WorkspaceOption,
    output: Annotated[Path | None, typer.Option(help="The PNG to write; patterns.png or crops.png.")] = None,
    classes: Annotated[int, typer.Option(min=1, help="Maximum number of classes; of random crops, of scans.")] = 12,
    store: StoreOption = "patterns",
) -> None:
    """A contact sheet: each class's reference and its nearest neighbours, or each scan's first random crops."""
    from raygenesis.patterns.contact_sheet import show
    from raygenesis.patterns.reader import STORES

    show(_existing(workspace), output or Path(f"{store}.png"), classes, STORES[store])


@patterns_app.command("view")
def patterns_view_command(
    workspace: WorkspaceOption,
    volume: Annotated[str, typer.Option(help="The id of a scan, as `archive show` and the report name it.")],
    output: Annotated[Path | None, typer.Option(help="The HTML page to write; patterns-ID.html.")] = None,
    store: StoreOption = "patterns",
) -> None:
    """One scan's slices with the boxes of its patterns, to be looked through in a browser."""
    from raygenesis.report.viewer import view

    view(_existing(workspace), volume, output or Path(f"{store}-{volume}.html"), store)


@app.command("pretrain")
def pretrain_command(
    workspace: WorkspaceOption, overrides: Overrides = None, preset: Preset = DEFAULT_PRESET, name: Name = "default",
    extend: Annotated[
        bool, typer.Option("--extend", help="Continue a finished run for more pretraining.num_joint_epochs.")
    ] = False,
) -> None:  # fmt: skip
    """Pattern store → pretrained encoder. Run it again to continue."""
    from raygenesis.pipeline import job
    from raygenesis.pretraining.pretrain import pretrain

    settings, place = _settings(preset, overrides), _existing(workspace)
    with job("pretrain", place, settings) as announce:
        pretrain(place, settings, name, extend, announce)


@app.command("pretexts")
def pretexts_command() -> None:
    """List the pretext tasks: what they learn from, corrupt, restore and classify."""
    from raygenesis.pretraining.pretexts import table

    for line in table():
        typer.echo(line)


@weights_app.command("show")
def weights_show_command(file: WeightsFile) -> None:
    """What a run's weights, or a published file, hold."""
    from raygenesis.networks.weights.loading import describe

    for line in describe(file):
        typer.echo(line)


@weights_app.command("export")
def weights_export_command(
    file: WeightsFile, output: Annotated[Path, typer.Option(help="The torch file (.pt) to write.")]
) -> None:
    """Write weights as the code that their network comes from loads them: Models Genesis, or MONAI."""
    from raygenesis.networks.weights.library_export import export_to_library

    typer.echo(f"{output}: for {export_to_library(file, output)}")


@app.command("sweep")
def sweep_command(
    workspace: WorkspaceOption, overrides: Overrides = None, preset: Preset = DEFAULT_PRESET,
    space: Annotated[
        Path | None, typer.Option(help="YAML file: settings of the pretraining, each with its values or range.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the sweep.")] = "default", rehash: Rehash = False,
) -> None:  # fmt: skip
    """Rank settings of the pretraining (λ, K, C, …) on one pattern store. Run it again to continue."""
    from raygenesis.pipeline import job
    from raygenesis.sweeps.sweep import sweep

    settings, place = _settings(preset, overrides), _with_digests(workspace, rehash)
    with job("sweep", place, settings) as announce:
        sweep(place, settings, name, space, announce)


@app.command("finetune")
def finetune_command(
    workspace: WorkspaceOption, overrides: Overrides = None, preset: Preset = DEFAULT_PRESET,
    target: Annotated[Path | None, typer.Option(help="YAML file that describes the target task.")] = None,
    images: Annotated[Path | None, typer.Option(help="Or, for a segmentation: folder of labelled scans.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Folder of their label maps, under the same names.")] = None,
    starts: Annotated[
        list[str] | None,
        typer.Option(
            "--from",
            help="random, a pretraining run, or a file of weights, or NAME=RUN-A,RUN-B for runs that differ in their "
            "seed; repeat it. Without: random and default.",
        ),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the target.")] = "default", rehash: Rehash = False,
) -> None:  # fmt: skip
    """Learn a target task from few labels, from random weights and from pretrained ones. Run it again to continue."""
    from raygenesis.pipeline import job
    from raygenesis.transfer.description import description_of
    from raygenesis.transfer.finetune import DEFAULT_SOURCES, FinetuneRequest, finetune

    settings, place = _settings(preset, overrides), _with_digests(workspace, rehash)
    description = description_of(target, images, labels, settings.ndim)
    request = FinetuneRequest(name, tuple(starts or DEFAULT_SOURCES))
    with job("finetune", place, settings) as announce:
        finetune(description, place, settings, request, announce)


@app.command("compare")
def compare_command(
    plan: Annotated[Path, typer.Argument(help="YAML file: initialisations and targets.")],
    workspace: WorkspaceOption, overrides: Overrides = None, preset: Preset = DEFAULT_PRESET, rehash: Rehash = False,
) -> None:  # fmt: skip
    """Pretrain a plan's initialisations with one budget, and compare them on its targets. Run it again to continue."""
    from raygenesis.pipeline import job
    from raygenesis.studies.compare import compare

    settings, place = _settings(preset, overrides), _with_digests(workspace, rehash)
    with job("compare", place, settings) as announce:
        compare(plan, place, settings, announce)


@app.command("report")
def report_command(workspace: WorkspaceOption, overrides: Overrides = None, preset: Preset = DEFAULT_PRESET) -> None:
    """One self-contained HTML page about everything in a workspace."""
    from raygenesis.cluster.job import recorded
    from raygenesis.report.report import report

    settings, place = _settings(preset, overrides), _existing(workspace)
    with recorded("report", place):
        report(place, settings)


@app.command("plan")
def plan_command(
    overrides: Overrides = None,
    preset: Annotated[
        str | None, typer.Option(help="Preset, or YAML file of settings. Default: as the workspace was made.")
    ] = None,
    volumes: Annotated[int | None, typer.Option(min=1, help="Number of scans. Default: the workspace's.")] = None,
    cpus: Annotated[int | None, typer.Option(min=1, help="Cores of all nodes. Default: this machine's.")] = None,
    gpus: Annotated[int, typer.Option(min=0, help="GPUs of all nodes.")] = 0,
    nodes: Annotated[int, typer.Option(min=1, help="Nodes that share them.")] = 1,
    workspace: Annotated[
        str | None, typer.Option(help="Take the scans' size, settings and stages' rates from what was run there.")
    ] = None,
    scan_mib: Annotated[float | None, typer.Option(min=0.001, help="MiB of voxels of a scan, uncompressed.")] = None,
    mib_per_second: Annotated[
        float, typer.Option(min=0.001, help="MiB that a node reads from, and writes to, the workspace in a second.")
    ] = MIB_PER_S,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """What a pipeline takes: time, memory, storage, bytes moved, cost, and what limits each stage."""
    from raygenesis.cluster.progress import say
    from raygenesis.planning.history import as_made
    from raygenesis.planning.plan import lines_of, plan
    from raygenesis.workspace.hardware import Hardware, num_cores

    place = None if workspace is None else _existing(workspace)
    settings = _settings(preset or DEFAULT_PRESET, overrides)
    settings = as_made(place, settings) if place is not None and preset is None else settings
    made = plan(volumes, Hardware(cpus or num_cores(), gpus, nodes), settings, place, scan_mib, mib_per_second)
    if as_json:
        _print_json(made)
        return
    for line in lines_of(made):
        say("plan", line)


@app.command("status")
def status_command(
    workspace: WorkspaceOption, overrides: Overrides = None, preset: Preset = DEFAULT_PRESET,
    jobs: Annotated[int, typer.Option(min=1, help="Maximum number of jobs, the newest.")] = 10,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """What the jobs of a workspace are doing, or did: stage, rate, time left, failures, cost so far."""
    from raygenesis.cluster.status import job_records, status

    if as_json:
        _print_json(job_records(_existing(workspace), jobs))
        return
    for line in status(_existing(workspace), _settings(preset, overrides).prices, jobs):
        typer.echo(line)


@app.command("doctor")
def doctor_command(
    workspace: Annotated[str | None, typer.Option(help="A workspace to be written, made if it is not there.")] = None,
) -> None:
    """What stands in the way of a job on this machine, or the cluster of RAY_ADDRESS, and the remedy; exit code 2."""
    from raygenesis.cluster.doctor import examine, page

    findings = examine(workspace)
    for line in page(findings):
        typer.echo(printable(line))
    if any(one.verdict == "fault" for one in findings):
        raise typer.Exit(2)


@app.command("config")
def config_command(
    overrides: Overrides = None, preset: Preset = DEFAULT_PRESET,
    reference: Annotated[bool, typer.Option("--reference", help="Print what every setting means instead.")] = False,
) -> None:  # fmt: skip
    """Print the resolved settings as YAML."""
    if reference:
        from raygenesis.settings.reference import reference as page

        typer.echo(page(), nl=False)
        return
    from raygenesis.settings import as_yaml

    typer.echo(as_yaml(_settings(preset, overrides)), nl=False)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        typer.echo(__version__)
        raise typer.Exit


def main(arguments: list[str] | None = None) -> None:
    """Entry point: a user's mistake is one sentence and exit code 2."""
    try:
        app(arguments, standalone_mode=True)
    except RaygenesisError as error:
        print(printable(f"raygenesis: {error}"), file=sys.stderr)
        sys.exit(2)


def _print_json(records: Any) -> None:
    from raygenesis.workspace.records import as_json

    typer.echo(as_json(records))


def _settings(preset: str, overrides: list[str] | None, keep_ids: bool = False) -> Settings:
    from raygenesis.settings import load_settings

    return load_settings(preset, [*(overrides or []), *(["archive.keep_ids=true"] if keep_ids else [])])


def _open(location: str, scans: Path) -> Workspace:
    """The workspace, made where there is none; nothing is made for a folder of scans that is not there."""
    from raygenesis.archive.intake.survey import require_folder
    from raygenesis.workspace.workspace import Workspace

    require_folder(scans)
    return Workspace.open(location)


def _existing(location: str) -> Workspace:
    from raygenesis.workspace.workspace import Workspace

    return Workspace.existing(location)


def _with_digests(workspace: str, rehash: bool) -> Workspace:
    """The workspace, with what it knows of the files of targets, unless they are all to be read again."""
    from raygenesis.transfer.target_files import forget_digests

    place = _existing(workspace)
    if rehash:
        forget_digests(place)
    return place
