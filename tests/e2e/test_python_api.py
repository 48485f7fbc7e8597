"""The Python API on a real small run: every code block of the guide, and the notebook."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

import vlmtune
from vlmtune.errors import ConfigError, RunFolderError

pytestmark = pytest.mark.e2e

REPO = Path(__file__).parents[2]
SECTION = "## From Python"


def blocks() -> list[str]:
    text = (REPO / "docs" / "GUIDE.md").read_text(encoding="utf-8")
    section = text[text.index(SECTION) :].partition("\n## ")[0]
    return re.findall(r"^```python\n(.*?)^```", section, flags=re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def namespace(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the guide's blocks leave behind, run one after the other in an empty folder."""
    names: dict[str, Any] = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("guide"))
        for block in blocks():
            exec(compile(block, "docs/GUIDE.md", "exec"), names)
        names["run"].path = names["run"].path.resolve()
    return names


def test_every_block_of_the_guide_runs(namespace: dict[str, Any]) -> None:
    assert len(blocks()) == 5
    run, losses = namespace["run"], namespace["losses"]
    assert run.figures.steps == len(losses) and losses[-1] < losses[0]
    assert namespace["model"].labels == tuple("0123456789")
    assert set(namespace["prediction"].probabilities) == set("0123456789")
    assert list(namespace["table"].columns[:2]) == ["image", "answer"] and len(namespace["table"]) == 3
    assert namespace["comparison"].difference == pytest.approx(
        namespace["tuned"].figures.accuracy - namespace["base"].figures.accuracy
    )
    assert namespace["small"].figures.num_examples == 20
    assert (run.path / "export" / "peft" / "adapter_model.safetensors").exists()


def test_results_print_and_show_themselves(namespace: dict[str, Any]) -> None:
    for name in ("run", "model", "prediction", "predictions", "tuned", "comparison"):
        assert repr(namespace[name]).startswith(type(namespace[name]).__name__)
    for name in ("run", "prediction", "predictions", "tuned", "comparison"):
        assert "<" in namespace[name]._repr_html_()


def test_finished_run_is_trained_no_second_time(namespace: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    run = namespace["run"]
    monkeypatch.chdir(run.path.parents[1])
    with pytest.raises(RunFolderError, match="this run is finished"):
        vlmtune.train(run.path / "config.yaml")
    assert vlmtune.Run(run.path).figures == run.figures


def test_a_step_that_returns_false_is_the_last(tmp_path: Path, namespace: dict[str, Any]) -> None:
    experiment = {**namespace["experiment"], "output_dir": str(tmp_path)}
    run = vlmtune.train(experiment, on_step=lambda step: step.step < 1, with_base=False)
    assert run.figures.steps == 1 and run.figures.is_stopped
    assert run.metrics[0]["step"] == 1


def test_wrong_keys_are_reported_in_the_words_of_a_file() -> None:
    with pytest.raises(ConfigError, match=r"experiment: train\.epoch: unknown key. Did you mean"):
        vlmtune.train({"name": "x", "data": "builtin:digits", "train": {"epoch": 1}})
    with pytest.raises(ConfigError, match="name: is missing"):
        vlmtune.train({"data": "builtin:digits"})


def test_server_answers_in_the_background_and_stops(namespace: dict[str, Any]) -> None:
    with (
        vlmtune.serve(namespace["run"], port=0, background=True) as server,
        urllib.request.urlopen(f"{server.url}/v1/models", timeout=30) as answer,
    ):
        assert json.load(answer)["data"]
    with pytest.raises(OSError):
        urllib.request.urlopen(f"{server.url}/v1/models", timeout=5)


def test_the_notebook_runs(tmp_path: Path) -> None:
    notebook = nbformat.read(REPO / "docs" / "quickstart.ipynb", as_version=4)
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [output for cell in notebook.cells for output in cell.get("outputs", []) if "data" in output]
    assert sum("text/html" in output["data"] for output in shown) == 6
    assert (tmp_path / "runs" / "quickstart" / "report.html").exists()
