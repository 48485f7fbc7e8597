"""Where a model is: a name from the command line or a file becomes a local folder.

In: `builtin:tiny`, a folder, or a hub id. Out: a folder in the hub's layout. Called by `registry.py` and `adapters`.
"""

from __future__ import annotations

import re
from pathlib import Path

from vlmtune.errors import UserError, unknown_name

BUILTIN_PREFIX = "builtin:"
BUILTIN = {"tiny": "builtin_tiny"}
"""Name after `builtin:` -> folder in this package."""

# Everything a model needs, and nothing in a format that could run code.
HUB_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt", "LICENSE*"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")


def locate(source: str, revision: str | None = None, *, with_weights: bool = True) -> Path:
    """Find a model's folder, or download it from the hub (an unfinished download is resumed; progress on stderr).

    Args:
        source: `builtin:tiny`, a local folder, or a hub id `owner/name`. A folder of that name takes precedence.
        revision: branch, tag or commit on the hub; None is the main branch.
        with_weights: whether to download them too, or only what describes the model.

    Raises:
        UserError: no such folder; not on the hub; gated; no connection; unknown built-in name.
    """
    if source.startswith(BUILTIN_PREFIX):
        return _locate_builtin(source.removeprefix(BUILTIN_PREFIX))
    path = Path(source).expanduser()
    if path.is_dir():
        return path
    if path.is_file():
        raise UserError(f"{source}: a file; expected the folder of a model, a hub id or 'builtin:tiny'.")
    if not _HUB_ID.fullmatch(source):
        raise UserError(f"{source}: no such folder. Expected a folder, a hub id like 'owner/name', or 'builtin:tiny'.")
    return _download(source, revision, with_weights)


def _locate_builtin(name: str) -> Path:
    if name not in BUILTIN:
        raise UserError(unknown_name("built-in model", name, BUILTIN))
    folder = Path(__file__).parent / BUILTIN[name]
    if not folder.is_dir():
        raise UserError(f"{folder}: this installation lacks the built-in model '{name}'. Install vlmtune again.")
    return folder


def _download(repo: str, revision: str | None, with_weights: bool) -> Path:
    # Imported here: a local model needs neither the package's start-up time nor the network.
    import huggingface_hub.errors as hub
    from huggingface_hub import snapshot_download

    # Errors of the HTTP client that the installed version of the hub's package uses.
    connection_failed: type[Exception] = getattr(hub, "HTTPError", hub.HfHubHTTPError)
    page = f"https://huggingface.co/{repo}"
    try:
        patterns = [pattern for pattern in HUB_FILES if with_weights or "safetensors" not in pattern]
        return Path(snapshot_download(repo, revision=revision, allow_patterns=patterns))
    except hub.GatedRepoError as error:
        raise UserError(
            f"{repo}: gated on the hub. Accept its terms at {page}, then log in with `hf auth login` (or set HF_TOKEN)."
        ) from error
    except hub.RevisionNotFoundError as error:
        raise UserError(f"{repo}: no revision '{revision}' on the hub. See {page}/tree/main for branches.") from error
    except hub.RepositoryNotFoundError as error:
        raise UserError(
            f"{repo}: no such folder here and no such model on the hub. Check the spelling; for a private model log in "
            "with `hf auth login` (or set HF_TOKEN)."
        ) from error
    except (hub.OfflineModeIsEnabled, hub.LocalEntryNotFoundError) as error:
        raise UserError(
            f"{repo}: no such folder here, not in the local cache, and the hub is out of reach (no connection, or "
            "HF_HUB_OFFLINE is set). Connect and try again, or give a local folder."
        ) from error
    except hub.HFValidationError as error:
        raise UserError(f"{repo}: no such folder, and not a hub id ({error}).") from error
    except (hub.HfHubHTTPError, connection_failed) as error:
        raise UserError(
            f"{repo}: the download failed ({error}). Run the same command again: it continues where it stopped."
        ) from error
    except OSError as error:
        raise UserError(
            f"{repo}: the download could not be written ({error.strerror or error}). Free some space, or set HF_HOME "
            "to another disk; then run the same command again."
        ) from error
