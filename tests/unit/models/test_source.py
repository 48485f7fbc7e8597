"""Names become folders, and models open from them; whatever goes wrong is said in one message."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import huggingface_hub.errors as hub
import pytest
import torch
from PIL import Image

from tests.tiny_model import write_tiny_folder
from vlmtune.errors import UserError, WeightsError
from vlmtune.models import source
from vlmtune.models.registry import choose_device, choose_dtype, open_model
from vlmtune.models.source import locate

pytestmark = pytest.mark.unit

# The HTTP client differs between versions of the hub's package.
httpx: Any = sys.modules[hub.HfHubHTTPError.__mro__[1].__module__.partition(".")[0]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny_folder(tmp_path_factory.mktemp("model") / "tiny")


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(folder, tmp_path / "copy"))


def _edit_config(folder: Path, **changes: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_folder_opens_with_all_it_takes(folder: Path) -> None:
    opened = open_model(str(folder))
    assert opened.folder == folder
    assert opened.family.name == "lfm2_vl"
    assert not opened.model.training
    assert not any(parameter.is_meta for parameter in opened.model.parameters())
    assert opened.tokenizer.decode(opened.tokenizer.encode("a red square")) == "a red square"
    processed = opened.processor.process(Image.new("RGB", (24, 24), "red"))
    assert len(opened.model.encode_images([processed])[0]) == processed.num_tokens


def test_the_older_model_type_opens(copy: Path) -> None:
    _edit_config(copy, model_type="lfm2-vl")
    assert open_model(str(copy)).family.name == "lfm2_vl"


def test_an_unknown_family_lists_the_known(copy: Path) -> None:
    _edit_config(copy, model_type="lfm3_vl")
    with pytest.raises(
        UserError, match=r"Unknown model family 'lfm3_vl'.*Did you mean 'lfm2_vl'.*Known: lfm2-vl, lfm2_vl"
    ):
        open_model(str(copy))


def test_config_that_misfits_its_weights_is_a_weights_error(copy: Path) -> None:
    _edit_config(copy, projector_hidden_size=30)
    with pytest.raises(WeightsError, match=r"linear_1\.weight is \[28, 96\], expected \[30, 96\]"):
        open_model(str(copy))


def test_a_folder_without_config_says_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    with pytest.raises(UserError, match=r"expected config\.json, found notes\.txt"):
        open_model(str(tmp_path))


def test_a_broken_config_is_named(copy: Path) -> None:
    (copy / "config.json").write_text('{"model_type": ')
    with pytest.raises(WeightsError, match=r"config\.json: not readable as JSON"):
        open_model(str(copy))


def test_types_and_devices_are_chosen(folder: Path) -> None:
    assert next(open_model(str(folder), dtype="bfloat16").model.parameters()).dtype == torch.bfloat16
    assert next(open_model(str(folder)).model.parameters()).dtype == torch.float32  # small: nothing to gain
    assert choose_dtype("float32", torch.device("cpu"), 10**9) == torch.float32
    with pytest.raises(UserError, match="device 'toaster' is not available"):
        choose_device("toaster")


def test_image_settings_that_are_given_win_over_the_folder(folder: Path) -> None:
    opened = open_model(str(folder), image_overrides={"do_image_splitting": False, "min_image_tokens": None})
    image = Image.new("RGB", (64, 64))
    assert len(open_model(str(folder)).processor.process(image).tiles) > 1
    assert len(opened.processor.process(image).tiles) == 1


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "nowhere", "a/b/c"])
def test_a_missing_folder_is_not_looked_up_on_the_hub(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: pytest.fail("asked the hub"))
    with pytest.raises(UserError, match="no such folder"):
        locate(name)


def test_a_file_is_not_a_model(tmp_path: Path) -> None:
    (tmp_path / "x.png").touch()
    with pytest.raises(UserError, match="a file; expected the folder"):
        locate(str(tmp_path / "x.png"))


def test_an_unknown_builtin_lists_the_known() -> None:
    with pytest.raises(UserError, match=r"Unknown built-in model 'tinny'. Did you mean 'tiny'"):
        locate("builtin:tinny")


def test_a_hub_id_downloads_only_what_cannot_run_code(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: dict[str, object] = {}

    def download(repo: str, **options: object) -> str:
        asked.update(options, repo=repo)
        return str(tmp_path)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert locate("owner/model", revision="v1") == tmp_path
    assert (asked["repo"], asked["revision"]) == ("owner/model", "v1")
    patterns = asked["allow_patterns"]
    assert isinstance(patterns, list) and "*.safetensors" in patterns
    assert not any(pattern.endswith((".py", ".bin", ".pkl", "*")) for pattern in patterns if pattern != "LICENSE*")


def _response(status: int) -> Any:
    return httpx.Response(status, request=httpx.Request("GET", "https://hub.example/owner/model"))


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (hub.GatedRepoError("gated", response=_response(403)), "hf auth login"),
        (hub.RepositoryNotFoundError("none", response=_response(404)), "no such model on the hub"),
        (hub.RevisionNotFoundError("none", response=_response(404)), "no revision 'v9'"),
        (hub.LocalEntryNotFoundError("not cached"), "not in the local cache"),
        (hub.OfflineModeIsEnabled("offline"), "HF_HUB_OFFLINE"),
        (hub.HfHubHTTPError("server", response=_response(500)), "continues where it stopped"),
        (httpx.ReadTimeout("slow"), "continues where it stopped"),
        (OSError(28, "No space left on device"), "HF_HOME"),
    ],
)
def test_whatever_the_hub_answers_is_a_user_error(error: Exception, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(UserError) as caught:
        locate("owner/model", revision="v9")
    assert told in str(caught.value)
    assert "owner/model" in str(caught.value)


def test_offline_only_a_cached_model_opens(folder: Path, tmp_path: Path) -> None:
    commit = "0" * 40
    repo = tmp_path / "hub" / "models--owner--model"
    (repo / "refs").mkdir(parents=True)
    (repo / "refs" / "main").write_text(commit)
    shutil.copytree(folder, repo / "snapshots" / commit)
    # In its own process: the hub's package reads the environment when it is imported.
    program = (
        "from vlmtune.models.source import locate\nfrom vlmtune.errors import UserError\n"
        "print(locate('owner/model'))\n"
        "try:\n    locate('owner/other')\nexcept UserError as error:\n    print(error)\n"
    )
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path), "HF_HUB_CACHE": str(tmp_path / "hub")}
    environment["PYTHONPATH"] = str(Path(source.__file__).parents[2])
    found, refused = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert Path(found) == repo / "snapshots" / commit
    assert "not in the local cache" in refused


def test_opening_a_model_does_not_import_torchs_compiler(folder: Path) -> None:
    program = (
        "import sys\nfrom vlmtune.runs.open import open_adapted\n"
        f"open_adapted({str(folder)!r})\nprint('torch._dynamo' in sys.modules)\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(source.__file__).parents[2])}
    told = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert told.stdout.split() == ["False"]
