"""A model's predictions for images: attributes, text, notebook display and tables. No torch."""

from __future__ import annotations

import base64
import html
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, overload

from vlmtune.errors import UnreadableImageError, UserError
from vlmtune.records import ImageSource

if TYPE_CHECKING:
    import pandas

NUM_BARS = 5
"""Labels with a bar in a notebook, the most probable ones."""
NUM_ROWS = 50
"""Maximum number of images that a notebook shows."""

_STYLE = (
    "<style>.vlmtune td{padding:2px 10px;vertical-align:middle;text-align:left}.vlmtune img{max-height:72px;"
    "border-radius:4px}.vlmtune .bar{display:inline-block;height:.7em;background:#4a7fc1;border-radius:2px}"
    ".vlmtune .error{color:#b3261e}</style>"
)


@dataclass(frozen=True)
class Prediction:
    """A model's prediction for one image.

    Attributes:
        image: the image's name: its path, or its position in the input.
        answer: the most probable label of a closed set, or the generated text; None if the image cannot be read.
        probabilities: label -> probability, the most probable first; they sum to 1. Empty for generated text.
        question: the question, if the task has no fixed one.
        error: why the image cannot be read.
    """

    image: str
    answer: str | None
    probabilities: dict[str, float] = field(default_factory=dict)
    question: str | None = None
    error: str | None = None
    source: ImageSource | None = field(default=None, repr=False, compare=False)

    @property
    def label(self) -> str | None:
        """The most probable label; None for generated text or an image that cannot be read."""
        return self.answer if self.probabilities else None

    @property
    def probability(self) -> float | None:
        """The probability of `label`."""
        return next(iter(self.probabilities.values()), None)

    def __repr__(self) -> str:
        if self.error is not None:
            return f"Prediction({self.image}: error: {self.error})"
        ranked = ", ".join(f"{label} {100 * share:.1f} %" for label, share in list(self.probabilities.items())[:3])
        return f"Prediction({self.image}: {ranked or repr(self.answer)})"

    def to_pandas(self) -> pandas.DataFrame:
        """A table of one row: see `Predictions.to_pandas`."""
        return Predictions([self]).to_pandas()

    def _repr_html_(self) -> str:
        return f'{_STYLE}<table class="vlmtune">{_row(self)}</table>'


class Predictions(Sequence[Prediction]):
    """The predictions for several images, in their order."""

    def __init__(self, predictions: Sequence[Prediction]) -> None:
        self._predictions = list(predictions)

    def __len__(self) -> int:
        return len(self._predictions)

    @overload
    def __getitem__(self, index: int) -> Prediction: ...

    @overload
    def __getitem__(self, index: slice) -> Predictions: ...

    def __getitem__(self, index: int | slice) -> Prediction | Predictions:
        if isinstance(index, slice):
            return Predictions(self._predictions[index])
        return self._predictions[index]

    def __iter__(self) -> Iterator[Prediction]:
        return iter(self._predictions)

    @property
    def labels(self) -> list[str | None]:
        """The most probable label of each image."""
        return [prediction.label for prediction in self]

    @property
    def answers(self) -> list[str | None]:
        """The label or generated text of each image."""
        return [prediction.answer for prediction in self]

    def __repr__(self) -> str:
        lines = [f"  {prediction!r}," for prediction in self._predictions[:10]]
        lines += [f"  … {len(self) - 10} more"] * (len(self) > 10)
        return "\n".join(["Predictions([", *lines, "])"])

    def to_pandas(self) -> pandas.DataFrame:
        """One row per image: image, answer, probability, error, question if there is one, and a column per label.

        Raises UserError if pandas is not installed.
        """
        labels = sorted({label for prediction in self for label in prediction.probabilities})
        rows = []
        for prediction in self:
            row: dict[str, Any] = {"image": prediction.image, "answer": prediction.answer}
            if any(other.question is not None for other in self):
                row["question"] = prediction.question
            row |= {"probability": prediction.probability, "error": prediction.error}
            rows.append(row | {label: prediction.probabilities.get(label) for label in labels if label not in row})
        return import_pandas().DataFrame(rows)

    def _repr_html_(self) -> str:
        rows = "".join(_row(prediction) for prediction in self._predictions[:NUM_ROWS])
        more = f"<p>… {len(self) - NUM_ROWS} more</p>" if len(self) > NUM_ROWS else ""
        return f'{_STYLE}<table class="vlmtune">{rows}</table>{more}'


def import_pandas() -> Any:
    """The pandas module. Raises UserError if it is not installed."""
    try:
        import pandas
    except ImportError as error:
        raise UserError("A table needs the package 'pandas'. Install it: pip install pandas") from error
    return pandas


def _row(prediction: Prediction) -> str:
    """A table row: thumbnail, name, and bars, the answer or the error. Everything from outside is escaped."""
    if prediction.error is not None:
        said = f'<span class="error">{html.escape(prediction.error)}</span>'
    elif prediction.probabilities:
        said = "<br>".join(
            f'<span class="bar" style="width:{max(1, round(100 * share))}px"></span> '
            f"{html.escape(label)} {100 * share:.1f} %"
            for label, share in list(prediction.probabilities.items())[:NUM_BARS]
        )
    else:
        said = html.escape(prediction.answer or "")
    question = "" if prediction.question is None else f"<br><i>{html.escape(prediction.question)}</i>"
    return (
        f"<tr><td>{_thumbnail(prediction)}</td><td>{html.escape(prediction.image)}{question}</td><td>{said}</td></tr>"
    )


def _thumbnail(prediction: Prediction) -> str:
    from vlmtune.evaluate.files import thumbnail

    if prediction.source is None or prediction.error is not None:
        return ""
    try:
        data = base64.b64encode(thumbnail(prediction.source.open())).decode()
    except UnreadableImageError:  # the file is gone since
        return ""
    return f'<img alt="" src="data:image/jpeg;base64,{data}">'
