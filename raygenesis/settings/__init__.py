"""The one tree of validated settings, its presets and overrides, and its reference page."""

from raygenesis.settings.archive import ArchiveSettings, IntensitySettings
from raygenesis.settings.discovery import (
    AutoencoderSettings,
    DiscoverySettings,
    EmbeddingSettings,
    IndexSettings,
    Scale,
)
from raygenesis.settings.finetune import FinetuneSettings
from raygenesis.settings.pretraining import NETWORK_DIVISORS, PretrainingSettings
from raygenesis.settings.prices import PriceSettings
from raygenesis.settings.reading import (
    PRESETS,
    adopt,
    as_yaml,
    command_line_of,
    dotted,
    load_settings,
    merged,
    read_mapping,
    read_yaml,
    sentence,
    settings_beside,
    settings_from,
)
from raygenesis.settings.section import Count, Section
from raygenesis.settings.sweep import SweepSettings
from raygenesis.settings.tree import Settings

__all__ = [
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
    "dotted",
    "load_settings",
    "merged",
    "read_mapping",
    "read_yaml",
    "sentence",
    "settings_beside",
    "settings_from",
]
