"""The workspace: artifacts are whole or absent, and know what made them."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from raygenesis import __version__
from raygenesis.errors import RaygenesisError, WorkspaceError
from raygenesis.workspace.artifacts import RUNS, Artifact
from raygenesis.workspace.files import folder_bytes, publish, read_json, remove_tree, write_json, write_table
from raygenesis.workspace.fingerprint import digest
from raygenesis.workspace.manifest import Counts, Manifest
from raygenesis.workspace.stage import Stage
from raygenesis.workspace.workspace import Workspace

SETTINGS = {"seed": 0, "archive": {"chunk": 64, "shard": 256}, "shape": (32, 32, 32), "window": None}


@dataclass(frozen=True, kw_only=True)
class RowsCounts(Counts):
    rows: int


@dataclass(frozen=True, kw_only=True)
class RowsManifest(Manifest):
    counts: RowsCounts
    note: str = ""


ROWS = Artifact("artifact", "embed", (), RowsManifest)


def stage(folder: Path, inputs: dict[str, str] | None = None, **changes: Any) -> Stage[RowsManifest]:
    return Stage(ROWS, folder / "artifact", {**SETTINGS, **changes}, inputs or {})


def finished(folder: Path, inputs: dict[str, str] | None = None, **changes: Any) -> RowsManifest:
    made = stage(folder, inputs, **changes)
    begin(made)
    return made.finish(RowsManifest(counts=RowsCounts(rows=3), seconds=1.23456, note="fact"))


def begin(made: Stage) -> None:
    """As a job that is cut off at once."""
    with made.claimed():
        pass


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_opening_makes_the_folder_and_leaves_in_it_only_that_nothing_of_it_is_sent(tmp_path: Path) -> None:
    workspace = Workspace.open(tmp_path / "a" / "b")
    assert workspace.root == tmp_path / "a" / "b" and names(workspace.root) == [".gitignore", ".rayignore"]
    assert Workspace.open(str(workspace.root)) == workspace
    with pytest.raises(WorkspaceError, match="is empty: run `raygenesis run`"):
        Workspace.existing(workspace.root)
    (workspace.root / "archive").mkdir()
    assert Workspace.existing(workspace.root) == workspace


def test_paths_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's workers have another working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert Workspace.open("here").root == tmp_path / "here"
    assert Workspace.open("~/there").root == tmp_path / "home" / "there"


def test_where_things_lie_is_a_contract(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    paths = [
        workspace.archive, workspace.volumes, workspace.catalog, workspace.autoencoder, workspace.embeddings,
        workspace.index, workspace.neighbours, workspace.patterns, workspace.run("a"), workspace.sweep("a"),
        workspace.transfer("a"), workspace.report, workspace.private,
    ]  # fmt: skip
    assert [path.relative_to(tmp_path).as_posix() for path in paths] == [
        "archive", "archive/volumes", "archive/catalog.parquet", "autoencoder", "embeddings",
        "index", "neighbours", "patterns", "runs/a", "sweeps/a", "transfer/a",
        "report", "private",
    ]  # fmt: skip


def test_folders_of_a_kind_are_those_that_there_are_whatever_they_are_called(tmp_path: Path) -> None:
    workspace = Workspace(tmp_path)
    assert workspace.folders(RUNS) == []
    for name in ("b", "my run", "a", ".hidden"):
        (tmp_path / "runs" / name).mkdir(parents=True)
    (tmp_path / "runs" / "file").write_text("")
    assert workspace.folders(RUNS) == [tmp_path / "runs" / name for name in ("a", "b", "my run")]


def test_a_workspace_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for location in (tmp_path / "file", tmp_path / "file" / "below"):
        with pytest.raises(WorkspaceError, match=r"cannot be written .*: choose a folder that you may write"):
            Workspace.open(location)
    with pytest.raises(WorkspaceError, match="ftp:// is not supported: give a folder, s3://bucket/prefix"):
        Workspace.open("ftp://bucket/x")


def test_a_workspace_to_read_must_be_there(tmp_path: Path) -> None:
    with pytest.raises(WorkspaceError, match="does not exist: make one with"):
        Workspace.existing(tmp_path / "missing")
    assert names(tmp_path) == []


@pytest.mark.parametrize("name", ["", ".", "..", ".hidden", "a/b", "../a", "a b", "a\n", "a\0", "-*"])
def test_names_cannot_lead_out_of_the_workspace(tmp_path: Path, name: str) -> None:
    for kind in (Workspace.run, Workspace.sweep, Workspace.transfer):
        with pytest.raises(WorkspaceError, match="use letters, digits"):
            kind(Workspace(tmp_path), name)


def test_plain_names_are_allowed(tmp_path: Path) -> None:
    assert Workspace(tmp_path).run("paper-3d_v1.2").name == "paper-3d_v1.2"


def test_a_stage_is_finished_when_its_manifest_is_there(tmp_path: Path) -> None:
    made = stage(tmp_path)
    assert made.finished() is None
    begin(made)
    assert made.finished() is None and names(made.folder) == ["started.json"]
    with pytest.raises(WorkspaceError, match="not there or not finished: run `raygenesis embed` first"):
        ROWS.require(made.folder)
    (made.folder / "rows").write_bytes(b"x" * 1000)
    made.finish(RowsManifest(counts=RowsCounts(rows=3), seconds=1.23456))
    assert made.finished() is not None and names(made.folder) == ["manifest.json", "rows", "started.json"]


def test_an_artifact_whose_manifest_was_removed_is_mended_by_what_made_it_alone(tmp_path: Path) -> None:
    """As is advised where a part of it is damaged: the other parts stay as they are."""
    finished(tmp_path, {"archive": "1"})
    (tmp_path / "artifact" / "manifest.json").unlink()
    assert stage(tmp_path, {"archive": "1"}).finished() is None
    with pytest.raises(WorkspaceError, match=r"seed was 0 and is now 1"):
        stage(tmp_path, {"archive": "1"}, seed=1).finished()
    with pytest.raises(WorkspaceError, match="was not made from the present archive"):
        stage(tmp_path, {"archive": "2"}).finished()


def test_a_manifest_says_what_was_made_of_what_and_by_what(tmp_path: Path) -> None:
    manifest = finished(tmp_path, {"archive": "00ff"})
    path = tmp_path / "artifact" / "manifest.json"
    assert ROWS.read(tmp_path / "artifact") == replace(manifest, settings=json.loads(json.dumps(SETTINGS)))
    on_disk = json.loads(path.read_text())
    assert on_disk["settings"] == json.loads(json.dumps(SETTINGS)) and on_disk["inputs"] == {"archive": "00ff"}
    assert (on_disk["counts"], on_disk["seconds"], on_disk["note"]) == ({"rows": 3}, 1.235, "fact")
    assert on_disk["version"] == __version__ and on_disk["bytes"] > 0 and "finished" in on_disk


@pytest.mark.parametrize("key", ["settings", "inputs", "fingerprint", None])
def test_a_manifest_that_lacks_what_all_have_is_damaged(tmp_path: Path, key: str | None) -> None:
    finished(tmp_path)
    path = tmp_path / "artifact" / "manifest.json"
    tree = json.loads(path.read_text())
    left = {name: value for name, value in tree.items() if name != key} if key else {}
    path.write_text(json.dumps(left))
    sentence = rf"manifest.json is damaged \({key or 'settings'}: field required\): remove it, then run again"
    for read in (stage(tmp_path).finished, stage(tmp_path, seed=1).finished, lambda: ROWS.read(path.parent)):
        with pytest.raises(WorkspaceError, match=sentence):
            read()


def test_what_an_earlier_version_recorded_besides_is_no_damage(tmp_path: Path) -> None:
    """Such as the bytes that were cropped during a sweep."""
    manifest = finished(tmp_path)
    path = tmp_path / "artifact" / "manifest.json"
    tree = json.loads(path.read_text())
    path.write_text(json.dumps({**tree, "counts": {"rows": 3, "bytes_cropped": 0}, "more": 1}))
    read = ROWS.read(tmp_path / "artifact")
    assert read is not None and read.counts == manifest.counts


def test_starting_again_keeps_what_an_earlier_attempt_made(tmp_path: Path) -> None:
    made = stage(tmp_path)
    begin(made)
    (made.folder / "part-0").write_text("done")
    begin(stage(tmp_path))
    assert made.finished() is None and (made.folder / "part-0").read_text() == "done"


@pytest.mark.parametrize("is_finished", [True, False])
def test_other_settings_are_refused_and_the_keys_named(tmp_path: Path, is_finished: bool) -> None:
    finished(tmp_path) if is_finished else begin(stage(tmp_path))
    other = stage(tmp_path, archive={"chunk": 32, "shard": 256}, seed=1)
    with pytest.raises(WorkspaceError) as refusal:
        other.finished()
    assert f"{tmp_path / 'artifact'} was made with other settings" in str(refusal.value)
    assert "(archive.chunk was 64 and is now 32, seed was 0 and is now 1)" in str(refusal.value)
    assert "shard" not in str(refusal.value)


def test_many_other_settings_are_counted(tmp_path: Path) -> None:
    finished(tmp_path, a=1, b=1, c=1, d=1, e=1)
    with pytest.raises(WorkspaceError, match=r"c was 1 and is now 2 and 2 more\)"):
        stage(tmp_path, a=2, b=2, c=2, d=2, e=2).finished()


def test_settings_that_only_look_other_in_json_are_the_same(tmp_path: Path) -> None:
    finished(tmp_path)
    assert stage(tmp_path, shape=[32, 32, 32]).finished() is not None
    assert stage(tmp_path, seed=0).finished() is not None


@pytest.mark.parametrize("is_finished", [True, False])
def test_changed_inputs_are_refused_by_name(tmp_path: Path, is_finished: bool) -> None:
    inputs = {"archive": "1", "index": "2"}
    finished(tmp_path, inputs) if is_finished else begin(stage(tmp_path, inputs))
    with pytest.raises(WorkspaceError, match="was not made from the present index"):
        stage(tmp_path, {"archive": "1", "index": "3"}).finished()


def test_an_input_that_earlier_versions_did_not_record_is_compared_where_it_is(tmp_path: Path) -> None:
    inputs = {"archive": "1", "index": "2"}
    manifest = finished(tmp_path, {"archive": "1"})
    now = replace(stage(tmp_path, inputs), later=frozenset({"index"}))
    assert now.finished() is not None and now.finished().fingerprint == manifest.fingerprint
    with pytest.raises(WorkspaceError, match="was not made from the present archive: "):
        replace(now, inputs={"archive": "3", "index": "2"}).finished()
    with pytest.raises(WorkspaceError, match="was not made from the present index: "):
        stage(tmp_path, inputs).finished()
    with now.claimed():
        now.finish(RowsManifest(counts=RowsCounts(rows=3), note="fact"))
    with pytest.raises(WorkspaceError, match="was not made from the present index: "):
        replace(now, inputs={"archive": "1", "index": "3"}).finished()


@pytest.mark.parametrize("name", ["manifest.json", "started.json"])
@pytest.mark.parametrize("content", [b"", b"{}", b'{"settings": {', b"\x00\x00", b"\xff\xfe\xfd", b"[]", b"null"])
def test_a_damaged_manifest_is_named_with_the_remedy(tmp_path: Path, name: str, content: bytes) -> None:
    begin(stage(tmp_path))
    (tmp_path / "artifact" / "started.json").unlink()
    (tmp_path / "artifact" / name).write_bytes(content)
    with pytest.raises(WorkspaceError, match=rf"{name} is damaged .*: remove it, then run again the command"):
        stage(tmp_path).finished()


def test_an_artifact_that_cannot_be_made_is_an_error_of_the_workspace(tmp_path: Path) -> None:
    (tmp_path / "artifact").write_text("in the way")
    with pytest.raises(WorkspaceError, match="artifact cannot be made: File exists"):
        begin(stage(tmp_path))


def test_the_fingerprint_is_of_settings_inputs_and_content_alone(tmp_path: Path) -> None:
    plain = stage(tmp_path).fingerprint()
    assert plain == stage(tmp_path / "elsewhere").fingerprint() == finished(tmp_path).fingerprint
    assert plain == Stage(ROWS, tmp_path, dict(reversed(SETTINGS.items())), {}).fingerprint()
    others = {stage(tmp_path, seed=1).fingerprint(), stage(tmp_path, {"a": "1"}).fingerprint(), plain}
    assert len({*others, stage(tmp_path).fingerprint(["content"])}) == 4


def test_digests_never_change_between_versions() -> None:
    assert digest({"b": [1, 2.5, None], "a": "é"}) == "42ac770f965954fd"
    assert digest({"a": "é", "b": (1, 2.5, None)}) == digest({"b": [1, 2.5, None], "a": "é"})


def test_readers_see_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write(aside: Path) -> None:
        aside.write_text("ne")
        assert path.read_text() == "old" and aside.parent == path.parent and aside.name.startswith(".")
        aside.write_text("new")

    publish(path, write)
    assert path.read_text() == "new" and names(tmp_path) == ["file"]


def test_many_writers_of_one_file_leave_one_of_their_contents(tmp_path: Path) -> None:
    path, contents = tmp_path / "file", [letter * 100_000 for letter in "abcd"]
    threads = [
        threading.Thread(target=publish, args=(path, lambda aside, text=text: aside.write_text(text)))
        for text in contents
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_text() in contents and names(tmp_path) == ["file"]


@pytest.mark.parametrize("fault", [OSError(28, "No space left on device"), KeyError("a bug"), KeyboardInterrupt()])
@pytest.mark.parametrize("is_folder", [True, False])
def test_a_write_that_fails_leaves_the_old_and_nothing_else(tmp_path: Path, fault: BaseException, is_folder) -> None:
    path = tmp_path / "file"
    path.write_text("old")

    def write(aside: Path) -> None:
        if is_folder:
            aside.mkdir()
            aside /= "part"
        aside.write_text("half")
        raise fault

    with pytest.raises(WorkspaceError if isinstance(fault, OSError) else type(fault)) as failure:
        publish(path, write)
    if isinstance(fault, OSError):
        assert str(failure.value) == f"{path} cannot be written: No space left on device"
    assert path.read_text() == "old" and names(tmp_path) == ["file"]


def test_a_folder_is_published_whole(tmp_path: Path) -> None:
    def write(aside: Path) -> None:
        (aside / "below").mkdir(parents=True)
        (aside / "below" / "file").write_text("x")

    publish(tmp_path / "folder", write)
    assert names(tmp_path) == ["folder"] and (tmp_path / "folder" / "below" / "file").read_text() == "x"


def test_writing_where_nothing_can_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file" / "a.json", tmp_path / "missing" / "a.json"):
        with pytest.raises(WorkspaceError, match=rf"{path} cannot be written: "):
            write_json(path, {})


def test_a_tree_is_removed_though_another_process_removes_it_too(tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "tree" / "below").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "tree")
    remove_tree(tmp_path / "link")
    remove_tree(tmp_path / "nothing")
    assert names(tmp_path) == ["tree"]
    remove, calls = shutil.rmtree, []

    def beside_another(path: Path) -> None:
        calls.append(path)
        if len(calls) == 1:
            raise FileNotFoundError(2, "No such file or directory")
        remove(path)

    monkeypatch.setattr(shutil, "rmtree", beside_another)
    remove_tree(tmp_path / "tree")
    assert names(tmp_path) == []


def test_json_and_tables_come_back(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"λ": [1, 2.5, None]})
    assert read_json(tmp_path / "a.json") == {"λ": [1, 2.5, None]}
    assert read_json(tmp_path / "missing.json") is None
    table = pa.table({"a": [1, 2, 3]})
    write_table(tmp_path / "a.parquet", table, row_group_size=2)
    assert pq.read_table(tmp_path / "a.parquet") == table
    assert pq.ParquetFile(tmp_path / "a.parquet").num_row_groups == 2


def test_bytes_of_a_folder_are_those_of_its_files(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "c").write_bytes(b"x" * 7)
    (tmp_path / "d").write_bytes(b"x" * 5)
    assert folder_bytes(tmp_path) == 12


def test_a_user_s_mistake_is_told_apart_from_a_bug() -> None:
    assert issubclass(WorkspaceError, RaygenesisError) and issubclass(RaygenesisError, ValueError)


def test_a_folder_that_another_job_writes_is_refused_and_free_again_when_it_ends(tmp_path: Path) -> None:
    folder = tmp_path / "artifact"
    hold = (
        "import sys; from pathlib import Path; from raygenesis.workspace.artifacts import CROPS\n"
        "from raygenesis.workspace.stage import Stage\n"
        "with Stage(CROPS, Path(sys.argv[1]), {}, {}).claimed(): print('held', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(WorkspaceError, match=rf"artifact is being written by another job \(process {other.pid} on"):
            begin(Stage(ROWS, folder, {}, {}))
        other.kill()
    begin(Stage(ROWS, folder, {}, {}))


def test_what_another_job_made_meanwhile_with_other_settings_is_not_mixed_with_ours(tmp_path: Path) -> None:
    waiting = stage(tmp_path, seed=1)
    assert not waiting.finished()
    finished(tmp_path)
    with pytest.raises(WorkspaceError, match=r"made with other settings \(seed was 0 and is now 1\)"):
        begin(waiting)
    assert stage(tmp_path).finished() is not None


def test_a_failed_job_leaves_its_folder_free(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), stage(tmp_path).claimed():
        raise RuntimeError
    begin(stage(tmp_path))
