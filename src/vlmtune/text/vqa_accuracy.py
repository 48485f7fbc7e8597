"""The official VQA accuracy of one answer against its annotators', with every quirk of the public evaluator.

In: a predicted answer and the question's answers. Out: a share between 0 and 1. `tasks.question` calls it. Written
after the algorithm of VQAEval of GT-Vision-Lab/VQA, which published numbers were measured with; a test compares it with
an independent copy of that algorithm.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Sequence

_PUNCTUATION = (
    ";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!",
)  # fmt: skip
_COMMA_BETWEEN_DIGITS = re.compile(r"\d,\d")
_PERIOD = re.compile(r"\.(?!\d)")
# The evaluator passes re.UNICODE, which is 32, where `sub` takes the number of replacements.
_MOST_PERIODS = int(re.UNICODE)
_NUMBER_WORDS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_NUMBERS = {"none": "0", **{word: str(value) for value, word in enumerate(_NUMBER_WORDS)}}
_ARTICLES = frozenset(("a", "an", "the"))

# Kept verbatim, with its slips: "somebody'd" loses its apostrophe, and Im, Ive, Id've are listed although words are
# looked up in lower case.
CONTRACTIONS = {
    "aint": "ain't", "arent": "aren't", "cant": "can't", "couldve": "could've", "couldnt": "couldn't",
    "couldn'tve": "couldn't've", "couldnt've": "couldn't've", "didnt": "didn't", "doesnt": "doesn't", "dont": "don't",
    "hadnt": "hadn't", "hadnt've": "hadn't've", "hadn'tve": "hadn't've", "hasnt": "hasn't", "havent": "haven't",
    "hed": "he'd", "hed've": "he'd've", "he'dve": "he'd've", "hes": "he's", "howd": "how'd", "howll": "how'll",
    "hows": "how's", "Id've": "I'd've", "I'dve": "I'd've", "Im": "I'm", "Ive": "I've", "isnt": "isn't", "itd": "it'd",
    "itd've": "it'd've", "it'dve": "it'd've", "itll": "it'll", "let's": "let's", "maam": "ma'am",
    "mightnt": "mightn't", "mightnt've": "mightn't've", "mightn'tve": "mightn't've", "mightve": "might've",
    "mustnt": "mustn't", "mustve": "must've", "neednt": "needn't", "notve": "not've", "oclock": "o'clock",
    "oughtnt": "oughtn't", "ow's'at": "'ow's'at", "'ows'at": "'ow's'at", "'ow'sat": "'ow's'at", "shant": "shan't",
    "shed've": "she'd've", "she'dve": "she'd've", "she's": "she's", "shouldve": "should've", "shouldnt": "shouldn't",
    "shouldnt've": "shouldn't've", "shouldn'tve": "shouldn't've", "somebody'd": "somebodyd",
    "somebodyd've": "somebody'd've", "somebody'dve": "somebody'd've", "somebodyll": "somebody'll",
    "somebodys": "somebody's", "someoned": "someone'd", "someoned've": "someone'd've", "someone'dve": "someone'd've",
    "someonell": "someone'll", "someones": "someone's", "somethingd": "something'd", "somethingd've": "something'd've",
    "something'dve": "something'd've", "somethingll": "something'll", "thats": "that's", "thered": "there'd",
    "thered've": "there'd've", "there'dve": "there'd've", "therere": "there're", "theres": "there's",
    "theyd": "they'd", "theyd've": "they'd've", "they'dve": "they'd've", "theyll": "they'll", "theyre": "they're",
    "theyve": "they've", "twas": "'twas", "wasnt": "wasn't", "wed've": "we'd've", "we'dve": "we'd've",
    "weve": "we've", "werent": "weren't", "whatll": "what'll", "whatre": "what're", "whats": "what's",
    "whatve": "what've", "whens": "when's", "whered": "where'd", "wheres": "where's", "whereve": "where've",
    "whod": "who'd", "whod've": "who'd've", "who'dve": "who'd've", "wholl": "who'll", "whos": "who's",
    "whove": "who've", "whyll": "why'll", "whyre": "why're", "whys": "why's", "wont": "won't", "wouldve": "would've",
    "wouldnt": "wouldn't", "wouldnt've": "wouldn't've", "wouldn'tve": "wouldn't've", "yall": "y'all",
    "yall'll": "y'all'll", "y'allll": "y'all'll", "yall'd've": "y'all'd've", "y'alld've": "y'all'd've",
    "y'all'dve": "y'all'd've", "youd": "you'd", "youd've": "you'd've", "you'dve": "you'd've", "youll": "you'll",
    "youre": "you're", "youve": "you've",
}  # fmt: skip


def vqa_accuracy(prediction: str, answers: Sequence[str], marks: Sequence[Hashable] | None = None) -> float:
    """Mean over the annotators of min(how many of the *others* gave this answer / 3, 1).

    With ten annotators 0, 1, 2, 3 and 4 matches give 0, 0.3, 0.6, 0.9 and 1. A single annotator gives 0 whatever is
    predicted, since no other annotator is left: readers of data sets with one answer a question repeat it ten times.
    Prediction and answers are normalized only where the annotators' own words differ: unanimous answers must be met
    to the letter, case included.

    Args:
        prediction: the model's answer as it was decoded.
        answers: one per annotator.
        marks: what distinguishes annotators' records besides their words (`answer_id` and `answer_confidence`).
            The evaluator leaves out all records that equal the current one, so equal marks and words go together.
            Default: every answer is a separate record, which official files guarantee.

    Raises:
        ValueError: without answers.
    """
    if not answers:
        raise ValueError("VQA accuracy needs at least one annotator's answer")
    guess, given = trim(prediction), [trim(answer) for answer in answers]
    if len(set(given)) > 1:
        guess, given = normalize(guess), [normalize(answer) for answer in given]
    records = list(zip(given, range(len(given)) if marks is None else marks, strict=True))
    shares = []
    for record in records:
        num_matches = sum(other[0] == guess for other in records if other != record)
        shares.append(min(1.0, num_matches / 3))
    return sum(shares) / len(shares)


def trim(text: str) -> str:
    """Replace line breaks and tabs by spaces and strip outer white space, as is done first with every answer."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def normalize(text: str) -> str:
    """A trimmed answer without punctuation, capitals and articles, with digits for number words and apostrophes put
    back into contractions.
    """
    words = []
    for word in _without_punctuation(text).lower().split():
        number = _NUMBERS.get(word, word)
        if number not in _ARTICLES:
            words.append(CONTRACTIONS.get(number, number))
    return " ".join(words)


def _without_punctuation(text: str) -> str:
    """Remove a sign that is next to a space anywhere in the text; replace another by a space, unless it groups digits.

    Both conditions concern the original text as a whole, not the current position.
    """
    has_grouped_digits = _COMMA_BETWEEN_DIGITS.search(text) is not None
    result = text
    for sign in _PUNCTUATION:
        is_beside_space = f"{sign} " in text or f" {sign}" in text
        result = result.replace(sign, "" if is_beside_space or has_grouped_digits else " ")
    return _PERIOD.sub("", result, count=_MOST_PERIODS)
