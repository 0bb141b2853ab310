"""The work of the whole pipeline: what each stage of `raygenesis run`, and what may follow it, has to do."""

from __future__ import annotations

from raygenesis.archive.catalogue import num_held_out
from raygenesis.archive.work import ingest_work
from raygenesis.cluster.work import ArchiveSize, Work
from raygenesis.discovery.work import autoencoder_work, crop_work, discover_work, embed_work, neighbours_work
from raygenesis.pretraining.pretexts import pretext_of
from raygenesis.pretraining.work import crops_size, pretrain_work
from raygenesis.settings import Settings
from raygenesis.sweeps.work import sweep_work
from raygenesis.transfer.work import default_finetune_work
from raygenesis.workspace.artifacts import PATTERNS


def pipeline_work(scans: ArchiveSize, settings: Settings) -> list[Work]:
    """Every stage of `raygenesis run`, in order, with the sweep and the fine-tuning that may follow."""
    discovery, autoencoder, pretraining = settings.discovery, settings.autoencoder, settings.pretraining
    fraction = settings.validation_fraction
    finetune_work = default_finetune_work(
        settings.finetune, pretraining, discovery.cube_shape, settings.gpus_of_trial("finetune")
    )
    if pretext_of(pretraining).store != PATTERNS:
        held_out = num_held_out(scans.num_scans, fraction)
        return [
            ingest_work(scans), crop_work(discovery, scans.num_scans - held_out, held_out),
            pretrain_work(pretraining, discovery, crops_size(scans, discovery, fraction)), finetune_work,
        ]  # fmt: skip
    return [
        ingest_work(scans), autoencoder_work(scans, autoencoder, fraction),
        embed_work(scans, settings.embedding, autoencoder),
        neighbours_work(scans, settings.index, autoencoder.latent_size),
        discover_work(discovery), pretrain_work(pretraining, discovery),
        sweep_work(settings.sweep, pretraining, discovery, settings.gpus_of_trial("sweep")), finetune_work,
    ]  # fmt: skip
