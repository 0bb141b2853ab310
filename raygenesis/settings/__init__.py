"""The one tree of validated settings, its presets and overrides, and its reference page."""

from raygenesis.settings.archive import ArchiveSettings, IntensitySettings
from raygenesis.settings.command_line import command_line_of
from raygenesis.settings.discovery import (
    AutoencoderSettings,
    DiscoverySettings,
    EmbeddingSettings,
    IndexSettings,
    Scale,
)
from raygenesis.settings.faults import validation_fault
from raygenesis.settings.finetune import FinetuneSettings
from raygenesis.settings.loading import (
    DEFAULT_PRESET,
    PRESETS,
    adopt,
    as_yaml,
    load_settings,
    settings_from,
    settings_of_run,
)
from raygenesis.settings.pretraining import EXECUTION_SETTINGS, NETWORK_DIVISORS, PretrainingSettings
from raygenesis.settings.prices import PriceSettings
from raygenesis.settings.section import Count, Section
from raygenesis.settings.sweep import SweepSettings
from raygenesis.settings.tree import Settings
from raygenesis.settings.trees import flatten, merge
from raygenesis.settings.yaml_files import read_mapping, read_yaml

__all__ = [
    "DEFAULT_PRESET",
    "EXECUTION_SETTINGS",
    "NETWORK_DIVISORS",
    "PRESETS",
    "ArchiveSettings",
    "AutoencoderSettings",
    "Count",
    "DiscoverySettings",
    "EmbeddingSettings",
    "FinetuneSettings",
    "IndexSettings",
    "IntensitySettings",
    "PretrainingSettings",
    "PriceSettings",
    "Scale",
    "Section",
    "Settings",
    "SweepSettings",
    "adopt",
    "as_yaml",
    "command_line_of",
    "flatten",
    "load_settings",
    "merge",
    "read_mapping",
    "read_yaml",
    "settings_from",
    "settings_of_run",
    "validation_fault",
]
