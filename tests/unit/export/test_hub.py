"""Pushing an export: what goes, what does not, and what is refused. The hub is a recording."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import CommitOperationAdd
from huggingface_hub.errors import LocalTokenNotFoundError

from vlmtune.config.schema import TaskSection
from vlmtune.errors import UserError
from vlmtune.export.card import PLACE
from vlmtune.export.hub import plan_upload, push
from vlmtune.export.run import REJECTED_FILE, sha256
from vlmtune.runs.manifest import Manifest, write_manifest

pytestmark = pytest.mark.unit


@dataclass
class RecordedHub:
    """Stands for `huggingface_hub.HfApi`."""

    repos: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    commits: list[tuple[str, list[CommitOperationAdd], dict[str, Any]]] = field(default_factory=list)
    error: Exception | None = None

    def create_repo(self, repo_id: str, **options: Any) -> None:
        if self.error is not None:
            raise self.error
        self.repos.append((repo_id, options))

    def create_commit(self, repo_id: str, operations: list[CommitOperationAdd], **options: Any) -> Any:
        self.commits.append((repo_id, operations, options))
        return type("Commit", (), {"commit_url": f"https://huggingface.co/{repo_id}/commit/1"})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "merged"
    folder.mkdir()
    (folder / "model.safetensors").write_bytes(b"weights")
    (folder / "README.md").write_text(f"vlmtune predict {PLACE} image.jpg")
    write(folder)
    return folder


def write(folder: Path, *, is_accepted: bool = True) -> None:
    files = {"model.safetensors": sha256(folder / "model.safetensors")}
    gate = {"accepted": is_accepted, "agreement": 0.9, "max_probability_difference": 0.2}
    write_manifest(folder, Manifest("merged", TaskSection(), ("a", "b"), gate=gate, files=files))


def test_judged_files_go_in_one_commit(folder: Path) -> None:
    (folder / "notes.txt").write_text("private")
    upload = plan_upload(folder, "owner/name")
    assert [name for name, _ in upload.files] == ["README.md", "model.safetensors", "vlmtune.json"]
    assert upload.left == ("notes.txt",)
    assert dict(upload.files)["model.safetensors"] == 7
    hub = RecordedHub()
    assert push(upload, "said", hub) == "https://huggingface.co/owner/name/commit/1"
    assert hub.repos == [("owner/name", {"repo_type": "model", "private": True, "exist_ok": True})]
    ((repo, operations, options),) = hub.commits
    assert repo == "owner/name" and options["commit_message"] == "said"
    assert [operation.path_in_repo for operation in operations] == ["README.md", "model.safetensors", "vlmtune.json"]
    assert operations[0].path_or_fileobj == b"vlmtune predict owner/name image.jpg"


def test_a_refused_export_is_not_pushed(folder: Path) -> None:
    (folder / REJECTED_FILE).write_text("no")
    with pytest.raises(UserError, match="the export gate refused this export"):
        plan_upload(folder, "owner/name")
    (folder / REJECTED_FILE).unlink()
    write(folder, is_accepted=False)  # the mark taken away is not enough
    with pytest.raises(UserError, match="the export gate refused this export"):
        plan_upload(folder, "owner/name")


def test_a_file_changed_since_the_gate_is_not_pushed(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"weighty")
    with pytest.raises(UserError, match="changed since the gate judged it"):
        plan_upload(folder, "owner/name")
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match="missing, but the gate judged it"):
        plan_upload(folder, "owner/name")


@pytest.mark.parametrize("repo", ["name", "a/b/c", "../x", "owner/", "own er/name"])
def test_a_repository_must_be_named_with_its_owner(folder: Path, repo: str) -> None:
    with pytest.raises(UserError, match="not a repository's name"):
        plan_upload(folder, repo)


def test_a_folder_that_is_no_export_is_not_pushed(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not an exported folder"):
        plan_upload(tmp_path, "owner/name")
    with pytest.raises(UserError, match="not an exported folder"):
        plan_upload(tmp_path / "nothing", "owner/name")


def test_who_is_not_logged_in_is_told_how(folder: Path) -> None:
    hub = RecordedHub(error=LocalTokenNotFoundError("no token"))
    with pytest.raises(UserError, match="hf auth login"):
        push(plan_upload(folder, "owner/name"), "said", hub)
    assert not hub.commits
