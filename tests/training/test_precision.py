"""Precisions, and what `auto` is."""

from __future__ import annotations

from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytest
import torch

from raygenesis.cluster import capacity, joining
from raygenesis.settings import PretrainingSettings, Settings
from raygenesis.training import precision as module
from raygenesis.training.chosen_precision import with_precision
from raygenesis.training.precision import autocast, fastest_precision, resolved
from raygenesis.workspace.artifacts import RUNS
from raygenesis.workspace.manifest_files import Started, write_started
from raygenesis.workspace.stage import settings_of


@pytest.mark.parametrize(("has_amx", "expected"), [(True, "bf16"), (False, "fp32")])
def test_a_cpu_is_fastest_in_bf16_where_it_has_amx(
    monkeypatch: pytest.MonkeyPatch, has_amx: bool, expected: str
) -> None:
    found = MappingProxyType({"amx_bf16": has_amx, "avx512_bf16": True})  # without tiles bf16 is slower than fp32
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: found)
    assert fastest_precision.__wrapped__("cpu") == expected


def test_the_processor_says_the_same_as_torch() -> None:
    flags = next((line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), "")
    assert (fastest_precision.__wrapped__("cpu") == "bf16") == ("amx_bf16" in flags.split())


@pytest.mark.parametrize(("has_it", "expected"), [(True, "bf16"), (False, "fp32")])
def test_a_gpu_is_asked_for_what_it_computes_and_does_not_emulate(
    monkeypatch: pytest.MonkeyPatch, has_it: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has_it or including_emulation)
    assert fastest_precision.__wrapped__("cuda") == expected


@pytest.mark.parametrize("name", ["auto", "fp32", "bf16", "fp16"])
def test_autocast_takes_the_name(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(module, "fastest_precision", lambda device: "bf16")
    expected = {"fp32": torch.float32, "fp16": torch.float16}.get(name, torch.bfloat16)
    with autocast("cpu", name):
        assert (torch.ones(2, 2) @ torch.ones(2, 2)).dtype == expected
    assert resolved(name, "cpu") == ("bf16" if name == "auto" else name)


def chosen(precision: str = "auto") -> Settings:
    return Settings(pretraining=PretrainingSettings(precision=precision))


@pytest.mark.parametrize(
    ("begun", "expected"),
    [
        (None, "bf16"),
        ({"pretraining": {"precision": "fp32"}}, "fp32"),
        ({"pretraining": {"precision": "fp16"}}, "fp16"),
        ({"pretraining": {}}, "fp32"),  # by a version that knew no other
    ],
)
def test_what_is_begun_goes_on_in_its_precision(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, begun: Any, expected: str
) -> None:
    monkeypatch.setattr(module, "fastest_precision", lambda device: "bf16")
    if begun is not None:
        write_started(tmp_path, Started(settings=begun, inputs={}))
    record = settings_of(RUNS, tmp_path)
    assert record == begun
    settings = with_precision(chosen(), "pretraining", "cpu", record)
    assert settings.pretraining.precision == expected and settings.finetune.precision == "auto"
    assert settings.model_copy(update={"pretraining": chosen().pretraining}) == chosen()
    # What is asked for is never changed: that other settings began it is said by the stage.
    assert with_precision(chosen("bf16"), "pretraining", "cpu", record).pretraining.precision == "bf16"


def test_a_process_without_a_gpu_asks_one_in_the_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(joining, "connect", lambda: asked.append("connected"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(capacity, "on_gpu", lambda key, question: asked.append(key) or "bf16")
    assert with_precision(chosen(), "pretraining", "cuda", None).pretraining.precision == "bf16"
    assert asked == ["connected", "pretraining.precision=auto with a GPU"]
