"""The demo, whole: what `make demo` promises, on the built-in model and data."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, object]]:
    folder = tmp_path_factory.mktemp("demo")
    command = [sys.executable, "-m", "vlmtune.cli.main", "demo", "--json", "--output", str(folder / "runs")]
    finished = subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)
    assert finished.returncode == 0, finished.stderr
    return folder, json.loads(finished.stdout)


def test_fine_tuning_beats_the_baseline_and_more_images_beat_fewer(demo: tuple[Path, dict[str, float]]) -> None:
    _, result = demo
    assert 0.50 <= result["baseline"] < result["tuned_10"] < result["tuned_100"]
    assert result["tuned_10"] >= 0.85
    assert result["tuned_100"] >= 0.98


def test_all_three_are_measured_on_the_same_held_out_images(demo: tuple[Path, dict[str, object]]) -> None:
    folder, _ = demo
    evaluations = sorted((folder / "runs").rglob("evaluation.json"))
    facts = [json.loads(path.read_text()) for path in evaluations]
    assert len(facts) == 3 + 5  # and what needs no image, or the frozen vision features alone
    assert {fact["data"]["num_examples"] for fact in facts} == {360}
    assert len({fact["data"]["fingerprint"] for fact in facts}) == 1


def test_the_report_is_one_page_with_the_three_results(demo: tuple[Path, dict[str, object]]) -> None:
    folder, result = demo
    page = (folder / str(result["report"])).read_text()
    for name in ("baseline", "tuned_10", "tuned_100"):
        assert name in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert 'src="data:image/jpeg' in page or "data:image/jpeg;base64" in page


def test_the_tuned_model_answers_with_probabilities(demo: tuple[Path, dict[str, object]], tmp_path: Path) -> None:
    from PIL import Image
    from sklearn.datasets import load_digits

    from vlmtune.inference.open import open_predictor
    from vlmtune.inference.predictor import Query
    from vlmtune.records import ImageSource, LabelScores

    folder, _ = demo
    digit = load_digits().images[0] * 255 / 16
    Image.fromarray(digit.astype("uint8")).resize((64, 64), Image.Resampling.BICUBIC).save(tmp_path / "0.png")
    predictor = open_predictor(str(folder / "runs" / "tuned_100"))
    (scores,) = predictor.classify([Query(ImageSource(path=tmp_path / "0.png"))])
    assert isinstance(scores, LabelScores)
    assert scores.prediction == "0"


def test_the_openai_client_asks_the_exported_demo_model(demo: tuple[Path, dict[str, object]], tmp_path: Path) -> None:
    import base64

    from openai import OpenAI

    from tests.served import digit_png, serving

    folder, _ = demo
    export = tmp_path / "digits"
    command = [sys.executable, "-m", "vlmtune.cli.main", "export", str(folder / "runs" / "tuned_100")]
    command += ["--format", "merged", "--output", str(export)]
    exported = subprocess.run(command, capture_output=True, text=True, check=False)
    assert exported.returncode == 0, exported.stderr
    with serving(export) as server:  # with the labels and the prompt it was trained with
        client = OpenAI(base_url=f"{server.url}/v1", api_key="none")
        (model,) = client.models.list().data
        assert model.id == "digits"
        for number in range(10):
            encoded = base64.b64encode(digit_png(number)).decode()
            image = {"type": "image_url", "image_url": {"url": f"data:image/png;base64,{encoded}"}}
            answer = client.chat.completions.create(
                model="digits",
                messages=[{"role": "user", "content": [image]}],  # type: ignore[list-item,misc]
                extra_body={"choices": list("0123456789")},
            )
            assert answer.choices[0].message.content == str(number)
