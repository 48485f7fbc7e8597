"""Which prompt a request gets, and that prompts are reused."""

from __future__ import annotations

import pytest

from vlmtune.config.schema import TaskSection
from vlmtune.models.registry import OpenedModel, open_model
from vlmtune.serve.errors import RefusedError
from vlmtune.serve.prompts import PromptCache

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def opened() -> OpenedModel:
    return open_model("builtin:tiny")


def cache(opened: OpenedModel, section: TaskSection, labels: list[str] | None = None, size: int = 8) -> PromptCache:
    return PromptCache(opened, section, labels, base="builtin:tiny", size=size)


def prompt_of(opened: OpenedModel, task: object) -> str:
    return opened.tokenizer.decode(task.prefix)  # type: ignore[attr-defined]


def test_other_labels_keep_the_trained_prompt(opened: OpenedModel) -> None:
    prompts = cache(opened, TaskSection(system_prompt="Which car? {labels}"), ["Audi", "BMW"])
    assert "Which car? Audi, BMW" in prompt_of(opened, prompts.classification(None))
    assert "Which car? red, blue" in prompt_of(opened, prompts.classification(["red", "blue"]))


def test_given_answers_keep_the_trained_prompt(
    opened: OpenedModel,
) -> None:
    prompts = cache(opened, TaskSection(type="text", system_prompt="Be brief.", user_prompt="answer en {question}"))
    assert "Be brief." in prompt_of(opened, prompts.open_question(None))
    assert "Be brief." in prompt_of(opened, prompts.closed_question(["yes", "no"], None))
    assert "Be long." in prompt_of(opened, prompts.open_question("Be long."))


def test_prompts_are_cached_by_last_use(opened: OpenedModel) -> None:
    prompts = cache(opened, TaskSection(), ["a", "b"], size=2)
    first = prompts.classification(None)
    prompts.classification(["x", "y"])
    assert prompts.classification(None) is first
    prompts.classification(["p", "q"])
    assert prompts.classification(None) is first
    second = prompts.classification(["x", "y"])
    assert prompts.classification(["x", "y"]) is second


def test_equal_or_missing_labels_are_refused(opened: OpenedModel) -> None:
    prompts = cache(opened, TaskSection())
    for labels in (None, ["<|im_end|>", "a"]):
        with pytest.raises(RefusedError) as refused:
            prompts.classification(labels)
        assert refused.value.status == 400
