"""`vlmtune push`: an exported folder to a repository of the hub, after listing what to upload."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from vlmtune.cli.console import print_json, print_table
from vlmtune.cli.options import JsonOption
from vlmtune.errors import UserError


def push(
    folder: Annotated[Path, typer.Argument(help="What `vlmtune export` wrote.")],
    repo: Annotated[str | None, typer.Option(metavar="OWNER/NAME", help="Where to. Nothing goes without it.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="List what would go, and send nothing.")] = False,
    public: Annotated[bool, typer.Option("--public", help="Make a new repository public. Default: private.")] = False,
    revision: Annotated[str | None, typer.Option(help="Branch to commit to. Default: the main branch.")] = None,
    message: Annotated[str | None, typer.Option(help="Of the commit.")] = None,
    json_: JsonOption = False,
) -> None:
    """Upload an export to the hub in one commit.

    Refuses what the export gate refused, and files changed since it judged them. Log in first: `hf auth login`.
    """
    from vlmtune.export.hub import plan_upload
    from vlmtune.export.hub import push as send

    if repo is None:
        raise UserError("Say where to push: --repo OWNER/NAME (with --dry-run to see what would go).")
    upload = plan_upload(folder, repo, is_private=not public, revision=revision)
    address = None if dry_run else send(upload, message or f"Upload {folder.name} with vlmtune")
    if json_:
        files = [{"name": name, "bytes": size} for name, size in upload.files]
        print_json({"repo": repo, "private": not public, "files": files, "left": upload.left, "commit": address})
        return
    print_table(["file", "bytes"], [[name, size] for name, size in upload.files])
    for name in upload.left:
        print(f"not uploaded, since the gate did not judge it: {name}")
    kind = "public" if public else "private"
    if address is None:
        print(f"dry run: {upload.num_bytes:,} bytes would go to {repo} ({kind} if it is new)")
    else:
        print(f"pushed {upload.num_bytes:,} bytes: {address}")
