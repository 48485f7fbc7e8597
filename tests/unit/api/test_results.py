"""What a prediction prints, tabulates and shows in a notebook."""

from __future__ import annotations

import builtins
import io
from typing import Any

import pytest
from PIL import Image

from vlmtune.api.results import NUM_ROWS, Prediction, Predictions
from vlmtune.errors import UserError
from vlmtune.records import ImageSource

pytestmark = pytest.mark.unit


def png() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    return buffer.getvalue()


CAT = Prediction("a.png", "cat", {"cat": 0.75, "dog": 0.25}, source=ImageSource(data=png(), name="a.png"))
TEXT = Prediction("b.png", "two dogs", question="How many?")
BROKEN = Prediction("c.png", None, error="the file is empty")


def test_label_and_probability_are_of_the_closed_set() -> None:
    assert (CAT.label, CAT.probability) == ("cat", 0.75)
    assert (TEXT.label, TEXT.probability, TEXT.answer) == (None, None, "two dogs")
    assert (BROKEN.label, BROKEN.answer) == (None, None)


def test_predictions_print_one_a_line() -> None:
    assert repr(CAT) == "Prediction(a.png: cat 75.0 %, dog 25.0 %)"
    assert repr(TEXT) == "Prediction(b.png: 'two dogs')"
    assert repr(BROKEN) == "Prediction(c.png: error: the file is empty)"
    lines = repr(Predictions([CAT] * 12)).splitlines()
    assert len(lines) == 13 and lines[-2] == "  … 2 more"


def test_predictions_are_a_sequence() -> None:
    predictions = Predictions([CAT, TEXT, BROKEN])
    assert len(predictions) == 3 and predictions[0] is CAT and list(predictions[1:]) == [TEXT, BROKEN]
    assert predictions.answers == ["cat", "two dogs", None] and predictions.labels == ["cat", None, None]


def test_tables_have_image_rows_and_label_columns() -> None:
    table = Predictions([CAT, BROKEN]).to_pandas()
    assert list(table.columns) == ["image", "answer", "probability", "error", "cat", "dog"]
    assert table.loc[0, ["answer", "cat"]].tolist() == ["cat", 0.75]
    assert CAT.to_pandas().shape == (1, 6)
    assert "question" in Predictions([TEXT]).to_pandas()


def test_missing_pandas_is_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "pandas":
            raise ImportError(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="pip install pandas"):
        CAT.to_pandas()


def test_notebook_shows_thumbnail_and_bars_and_escapes() -> None:
    hostile = "<script>alert(1)</script>"
    page = Predictions(
        [CAT, Prediction(hostile, hostile, {hostile: 1.0}), Prediction("d", None, error=hostile), TEXT]
    )._repr_html_()
    assert "data:image/jpeg;base64," in page and 'style="width:75px"' in page and "How many?" in page
    assert "<script>" not in page and page.count("&lt;script&gt;") == 3
    assert "data:image" in CAT._repr_html_()


def test_notebook_shows_at_most_fifty_images() -> None:
    page = Predictions([TEXT] * (NUM_ROWS + 7))._repr_html_()
    assert page.count("<tr>") == NUM_ROWS and "… 7 more" in page
