"""An exported folder to a repository of the hub: what to upload, and uploading it in one commit.

Only files that the gate judged, the card and the manifest are uploaded; other files are listed as left out.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vlmtune.errors import UserError
from vlmtune.export.card import CARD_FILE, PLACE
from vlmtune.export.run import REJECTED_FILE, sha256
from vlmtune.runs.manifest import MANIFEST_FILE, Manifest, read_manifest

_REPO = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


@dataclass(frozen=True)
class Upload:
    """A planned upload.

    Attributes:
        files: (name, bytes) of every file to upload.
        left: names of the files that are not uploaded.
    """

    folder: Path
    repo: str
    is_private: bool
    revision: str | None
    files: tuple[tuple[str, int], ...]
    left: tuple[str, ...]

    @property
    def num_bytes(self) -> int:
        return sum(size for _, size in self.files)


def plan_upload(folder: Path, repo: str, *, is_private: bool = True, revision: str | None = None) -> Upload:
    """Check an exported folder and list what to upload.

    Raises:
        UserError: not an export, refused by the gate, or changed since the gate judged it; not a repository's name.
    """
    if not _REPO.fullmatch(repo):
        raise UserError(f"'{repo}' is not a repository's name. Expected OWNER/NAME.")
    manifest = read_manifest(folder) if folder.is_dir() else None
    if manifest is None:
        raise UserError(
            f"{folder}: not an exported folder (no {MANIFEST_FILE}). Export a run first: vlmtune export RUN --format …"
        )
    _refuse_rejected(folder, manifest)
    _refuse_changed(folder, manifest)
    going = [*manifest.files, *(name for name in (CARD_FILE, MANIFEST_FILE) if (folder / name).is_file())]
    present = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return Upload(
        folder=folder,
        repo=repo,
        is_private=is_private,
        revision=revision,
        files=tuple((name, (folder / name).stat().st_size) for name in sorted(going)),
        left=tuple(sorted(present - set(going))),
    )


def push(upload: Upload, message: str, api: Any = None) -> str:
    """Send everything in one commit; the repository is created if missing. Returns the commit's address.

    Args:
        api: a `huggingface_hub.HfApi`.

    Raises:
        UserError: not logged in, no permission, no connection.
    """
    import huggingface_hub.errors as hub
    from huggingface_hub import CommitOperationAdd, HfApi

    connection_failed: type[Exception] = getattr(hub, "HTTPError", hub.HfHubHTTPError)
    api = api or HfApi()
    try:
        api.create_repo(upload.repo, repo_type="model", private=upload.is_private, exist_ok=True)
        commit = api.create_commit(
            upload.repo,
            operations=[CommitOperationAdd(name, _content(upload, name)) for name, _ in upload.files],
            commit_message=message,
            repo_type="model",
            revision=upload.revision,
        )
    except hub.LocalTokenNotFoundError as error:
        raise UserError("Not logged in to the hub. Run `hf auth login`, or set HF_TOKEN.") from error
    except (hub.HfHubHTTPError, hub.HFValidationError, connection_failed) as error:
        raise UserError(
            f"{upload.repo}: the upload failed ({error}). Nothing was committed. Check that your token may write there "
            "(`hf auth whoami`), then run the same command again."
        ) from error
    return str(commit.commit_url)


def _content(upload: Upload, name: str) -> str | bytes:
    """A file's path; for the card its text, with the repository's name in its commands."""
    path = upload.folder / name
    if name == CARD_FILE:
        return path.read_text(encoding="utf-8").replace(PLACE, upload.repo).encode()
    return str(path)


def _refuse_rejected(folder: Path, manifest: Manifest) -> None:
    if (folder / REJECTED_FILE).exists() or not manifest.gate.get("accepted", False):
        raise UserError(
            f"{folder}: the export gate refused this export (agreement {manifest.gate.get('agreement', 'unknown')}, "
            f"largest difference {manifest.gate.get('max_probability_difference', 'unknown')}), so it is not pushed. "
            "Export again."
        )


def _refuse_changed(folder: Path, manifest: Manifest) -> None:
    for name, digest in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"{path}: missing, but the gate judged it. Export the run again.")
        if sha256(path) != digest:
            raise UserError(f"{path}: changed since the gate judged it. Export the run again.")
