"""Baselines: what little models reach on given features, and what the report says of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import make_classification
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.preprocessing import StandardScaler

from tests.synthetic_runs import in_memory, random_table, write_evaluation
from vlmtune.evaluate.probes import Split, linear_probe, nearest_neighbors
from vlmtune.report.baselines import against
from vlmtune.report.calibration import expected_coverage

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def data() -> tuple[Split, Split, np.ndarray, np.ndarray]:
    x, y = make_classification(500, 12, n_informative=6, n_classes=4, class_sep=1.2, random_state=0)
    x, y = (x * np.geomspace(0.01, 100, 12)).astype(np.float32), y.astype(np.int64)  # scales that need standardizing
    return Split(x[:250], y[:250]), Split(x[250:350], y[250:350]), x[350:], y[350:]


def test_nearest_neighbors_equal_scikit_learns(data: Any) -> None:
    train, validation, test, _ = data
    probed = nearest_neighbors(train, validation, test, 4)
    k = int(probed.setting.removeprefix("k = "))
    scaler = StandardScaler().fit(train.features)
    peer = KNeighborsClassifier(k, metric="cosine", weights="distance").fit(
        scaler.transform(train.features), train.labels
    )
    assert np.array_equal(probed.prediction, peer.predict(scaler.transform(test)))
    assert probed.tried[probed.setting] == max(probed.tried.values())


def test_the_linear_probe_equals_scikit_learns_at_the_chosen_penalty(data: Any) -> None:
    train, validation, test, truth = data
    probed = linear_probe(train, validation, test, 4)
    penalty = float(probed.setting.removeprefix("C = "))
    scaler = StandardScaler().fit(train.features)
    peer = LogisticRegression(C=penalty, max_iter=2000, tol=1e-6).fit(scaler.transform(train.features), train.labels)
    agreement = (probed.prediction == peer.predict(scaler.transform(test))).mean()
    assert agreement >= 0.98  # it stops at another tolerance, warmly started
    assert probed.tried[probed.setting] == max(probed.tried.values())
    assert (probed.prediction == truth).mean() > 1.5 * np.bincount(truth).max() / len(truth)
    assert np.exp(probed.log_probs).sum(axis=1) == pytest.approx(1.0)


def test_a_label_without_training_images_has_a_probability_all_the_same(data: Any) -> None:
    train, validation, test, _ = data
    probed = linear_probe(train, validation, test, 6)
    assert probed.log_probs is not None and np.isfinite(probed.log_probs).all() and probed.log_probs.shape[1] == 6


def test_without_validation_images_nothing_is_tried(data: Any) -> None:
    train, _, test, _ = data
    nothing = Split(train.features[:0], train.labels[:0])
    assert nearest_neighbors(train, nothing, test, 4).tried == linear_probe(train, nothing, test, 4).tried == {}


def baselines_of(root: Path, **skills: float) -> dict[str, Any]:
    rows = []
    for seed, (key, skill) in enumerate(skills.items(), start=5):
        key = key.replace("_", "-")
        found = write_evaluation(root / key, key, random_table(num=300, skill=skill, seed=seed), with_thumbnails=False)
        figures = found.facts["metrics"]
        kept = {
            name: figures[name] for name in ("accuracy", "accuracy_interval", "num_correct", "num_unreadable", "nll")
        }
        kind = "ceiling" if key == "linear-probe" else "floor"
        rows.append({"key": key, "name": key, "kind": kind, **kept, "seconds": 1.0, "setting": "", "folder": key})
    return {"split": "test", "limit": None, "num_examples": 300, "rows": rows}


def test_baselines_are_tested_against_the_model(tmp_path: Path) -> None:
    subject = in_memory("tuned", random_table(num=300, skill=3.0, seed=1))
    found = baselines_of(tmp_path, majority=-9.0, prompt_only_tuned=-9.0, linear_probe=6.0)
    shown = against(found, tmp_path, subject)
    accuracies = [row["accuracy"] for row in shown["rows"]]
    assert accuracies == sorted(accuracies) and len(accuracies) == 4
    told = " ".join(shown["summary"])
    assert "it looks at them" in told
    assert "tuned is significantly worse: the vision tower sees what the answers do not yet use" in told
    blind = against(baselines_of(tmp_path / "b", prompt_only_tuned=2.6), tmp_path / "b", subject)
    (pair,) = (row["pair"] for row in blind["rows"] if row["pair"])
    assert pair["difference"] > 0 and not pair["is_significant"]
    assert "cannot be shown to look" in " ".join(blind["summary"])


def test_floors_of_other_images_get_no_test(tmp_path: Path) -> None:
    subject = in_memory("tuned", random_table(num=300, skill=3.0, seed=1, data_seed=7))
    shown = against(baselines_of(tmp_path, linear_probe=4.0), tmp_path, subject)
    assert [row["pair"] for row in shown["rows"]] == [None]


def test_what_a_promised_coverage_means_narrows_with_validation_images() -> None:
    few, many = expected_coverage(50, 1000, 0.9), expected_coverage(5000, 1000, 0.9)
    assert few[0] < many[0] < 0.9 < many[1] < few[1]
    # Simulated: thresholds from 100 exchangeable scores, coverage of 400 others.
    rng = np.random.default_rng(0)
    scores = np.sort(rng.random((2000, 100)), axis=1)
    threshold = scores[:, int(np.ceil(101 * 0.9)) - 1]
    coverage = (rng.random((2000, 400)) <= threshold[:, None]).mean(axis=1)
    low, high = expected_coverage(100, 400, 0.9)
    assert ((low <= coverage) & (coverage <= high)).mean() == pytest.approx(0.95, abs=0.02)
