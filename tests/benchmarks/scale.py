"""Planning at a million scans: neighbours, references and the plan from synthetic embeddings and a made-up catalogue.

Nothing is cropped: what is exercised is all that grows with the archive. Prints seconds and peak memory.
"""

from __future__ import annotations

import multiprocessing
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from raygenesis.archive.catalogue import CATALOGUE
from raygenesis.discovery.embeddings import Embeddings
from raygenesis.discovery.exact import exact_search
from raygenesis.discovery.neighbours import build_index, find_neighbours, searcher, typical_distance
from raygenesis.discovery.patients import choose_references, load_patients
from raygenesis.discovery.plan import plan_visits
from raygenesis.machine import peak_memory_gib
from raygenesis.patterns.schema import TRAINING, VALIDATION
from raygenesis.settings import load_settings
from raygenesis.workspace import Workspace, write_json

SIZE, VOLUMES_PER_PART, CLUSTERS = 512, 128, 1000


def make_workspace(root: Path, num_volumes: int) -> Workspace:
    """A catalogue and clustered embeddings of so many volumes, every fifth subject with two."""
    workspace = Workspace.open(root)
    workspace.archive.mkdir(exist_ok=True)
    workspace.embeddings.mkdir(exist_ok=True)
    ids = [f"{number:016x}" for number in range(num_volumes)]
    row = {name: None for name in CATALOGUE.names}
    facts = {
        "volume_id": pa.array(ids), "source": pa.array([f"{name}.nii" for name in ids]),
        "subject_id": pa.array([f"s{number - (number % 6 == 5)}" for number in range(num_volumes)]),
        "shape": pa.array([[133, 512, 512]] * num_volumes, CATALOGUE.field("shape").type),
        "spacing_mm": pa.array([[2.5, 0.7, 0.7]] * num_volumes, CATALOGUE.field("spacing_mm").type),
    }  # fmt: skip
    columns = [
        facts[name] if name in facts else pa.nulls(num_volumes, CATALOGUE.field(name).type) for name in row
    ]
    pq.write_table(pa.table(columns, schema=CATALOGUE), workspace.catalog)
    centres = np.random.default_rng(0).standard_normal((CLUSTERS, SIZE)).astype(np.float32)
    for start in range(0, num_volumes, VOLUMES_PER_PART):
        names = ids[start : start + VOLUMES_PER_PART]
        generator = np.random.default_rng([1, start])
        vectors = centres[generator.integers(CLUSTERS, size=len(names))]
        vectors = vectors + generator.standard_normal(vectors.shape, np.float32)
        cells = pa.FixedSizeListArray.from_arrays(vectors.ravel(), SIZE)
        table = pa.table({"volume_id": names, "embedding": cells, "failure": [""] * len(names)})
        pq.write_table(table, workspace.embeddings / f"part-{start:09d}.parquet")
    write_json(workspace.embeddings / "manifest.json", {"fingerprint": "made up", "inputs": {}, "counts": {}})
    return workspace


@contextmanager
def step(name: str) -> Iterator[None]:
    begin = time.perf_counter()
    yield
    print(f"{name}: {time.perf_counter() - begin:.1f} s, peak memory so far {peak_memory_gib():.2f} GiB", flush=True)


def main(num_volumes: int) -> None:
    overrides = ["discovery.num_references=44", "validation_fraction=0.05"]
    settings = load_settings("paper-3d", overrides)
    with tempfile.TemporaryDirectory() as root:
        apart = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))  # its memory is not ours
        with step(f"{num_volumes:,} made-up volumes × {SIZE} numbers written"), apart as pool:
            workspace = pool.submit(make_workspace, Path(root), num_volumes).result()
        embeddings = Embeddings(workspace.embeddings)
        with step("patients"):
            patients = load_patients(workspace, settings)
        with step("44 references"):
            references = choose_references(patients, embeddings, settings)
        with step("index"):
            search = searcher(workspace, build_index(workspace, settings))
        with step("200 + 30 neighbours of each"):
            least = settings.discovery.duplicate_distance * typical_distance(embeddings, patients, settings)
            found = [{TRAINING: [one]} for one in references]
            for split, wanted in ((TRAINING, 199), (VALIDATION, 30)):
                seen = [one[TRAINING] for one in found]
                picked = find_neighbours(patients, embeddings, search, references, split, wanted, least, seen)
                for one, numbers in zip(found, picked, strict=True):
                    one[split] = one.get(split, []) + numbers
        with step("plan"):
            names = [{split: patients.names(members) for split, members in one.items()} for one in found]
            plan = plan_visits(names, 44 * 3, settings.discovery.patterns_per_part)
        print(f"{plan.num_rows} visits in {plan['part'][-1].as_py() + 1} parts, {plan.num_rows * 132} patterns")
        with step("check: the neighbours of one reference by one exact search"):
            eligible = patients.eligible(VALIDATION)
            truth = exact_search(embeddings.blocks(eligible), embeddings.take(np.array(references[:1])), 40)
        subjects: dict[int, int] = {}
        for number in truth.numbers[0]:
            subjects.setdefault(int(patients.subjects[number]), int(number))
        assert list(subjects.values())[:30] == found[0][VALIDATION]


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
