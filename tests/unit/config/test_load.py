"""Experiment files: what is read, and what is said about a wrong one."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tiny.config import Pretraining, WholeStage
from vlmtune.config.load import InvalidExperimentError, dump, load_experiment, load_section
from vlmtune.config.schema import AdapterSection, Experiment, TaskSection
from vlmtune.errors import ConfigError

pytestmark = pytest.mark.unit


@pytest.fixture
def write(tmp_path: Path):
    def write(text: str | bytes, name: str = "run.yaml") -> Path:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return write


def problems(path: Path, *overrides: str, must_exist: bool = True) -> list[str]:
    with pytest.raises(InvalidExperimentError) as caught:
        load_experiment(path, overrides, must_exist=must_exist)
    return [str(problem).replace(f"{path}:", "") for problem in caught.value.problems]


def message(path: Path, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_experiment(path, overrides)
    return str(caught.value).replace(f"{path}", "F")


# ── what is read ────────────────────────────────────────────────────────────────────────────────────────────────────


def test_left_out_sections_take_their_defaults(write) -> None:
    experiment = load_experiment(write("seed: 3\n", "digits.yaml"))
    assert experiment == Experiment(seed=3, name="digits")


def test_an_empty_section_is_its_defaults(write) -> None:
    assert load_experiment(write("train:\nadapter:\n")).train == Experiment().train


def test_a_number_that_yaml_reads_as_text_is_a_number(write) -> None:
    train = load_experiment(write("train: {learning_rate: 5e-4, max_steps: 1e4, weight_decay: '0.1'}\n")).train
    assert (train.learning_rate, train.max_steps, train.weight_decay) == (5e-4, 10_000, 0.1)


def test_digits_are_text_where_text_is_meant_exactly_as_written(write) -> None:
    experiment = load_experiment(
        write(
            "name: 2024-01-02\nmodel: {revision: 1234567}\n"
            "task:\n  labels: [0, 010, 1_0, 12:30, 5e-4]\n  label_names: {0: zero, 010: [ten, 10]}\n"
        )
    )
    assert experiment.name == "2024-01-02"
    assert experiment.model.revision == "1234567"
    assert experiment.task.labels == ["0", "010", "1_0", "12:30", "5e-4"]
    assert experiment.task.label_names == {"0": "zero", "010": ["ten", "10"]}


def test_booleans_are_text_where_text_is_meant(write) -> None:
    experiment = load_experiment(
        write("name: yes\ntask:\n  labels: [yes, No, true]\n  label_names: {yes: on, No: [off, n]}\n"),
        ["task.labels=[yes, No, True]"],
    )
    assert (experiment.name, experiment.task.labels) == ("yes", ["yes", "No", "True"])
    assert experiment.task.label_names == {"yes": "on", "No": ["off", "n"]}
    assert load_experiment(write("adapter: {rslora: true}\n")).adapter.rslora


def test_a_choice_named_off_is_not_a_boolean(write) -> None:
    train = load_experiment(write("train: {feature_cache: off, checkpoint_activations: On}\n")).train
    assert (train.feature_cache, train.checkpoint_activations) == ("off", "on")


def test_a_plain_text_stands_for_source_or_base(write, tmp_path) -> None:
    (tmp_path / "images").mkdir()
    experiment = load_experiment(write("data: images\nmodel: LiquidAI/LFM2-VL-450M\n"))
    assert experiment.data.source == str(tmp_path / "images")
    assert experiment.model.base == "LiquidAI/LFM2-VL-450M"


def test_a_relative_source_prefers_the_current_directory(write, tmp_path, monkeypatch) -> None:
    here = tmp_path / "here"
    (here / "images").mkdir(parents=True)
    (tmp_path / "images").mkdir()
    monkeypatch.chdir(here)
    assert load_experiment(write("data: images\n")).data.source == str(here / "images")
    (here / "images").rmdir()
    assert load_experiment(write("data: images\n")).data.source == str(tmp_path / "images")


def test_a_missing_source_names_both_places(write, tmp_path, monkeypatch) -> None:
    here = tmp_path / "here"
    here.mkdir()
    monkeypatch.chdir(here)
    path = write("seed: 1\ndata: {source: ./gone}\n")
    (only,) = problems(path)
    assert only.startswith("2: data.source: found './gone'")
    assert str(here / "gone") in only and str(tmp_path / "gone") in only
    assert load_experiment(path, must_exist=False).data.source == "./gone"


def test_a_hub_id_is_left_for_the_hub(write) -> None:
    assert load_experiment(write("data: uoft-cs/cifar100\n")).data.source == "uoft-cs/cifar100"


def test_a_csv_that_is_not_there_is_no_hub_id(write) -> None:
    assert "1: data.source: found 'mine/labels.csv'" in problems(write("data: mine/labels.csv\n"))[0]


def test_merged_and_aliased_sections_are_unfolded(write) -> None:
    experiment = load_experiment(
        write("task: {labels: &names [a, b]}\ndata: {<<: {limit: 5, fraction: 0.5}, limit: 7, label_column: x}\n")
    )
    assert (experiment.data.limit, experiment.data.fraction) == (7, 0.5)


def test_a_run_folder_stands_for_its_config(write, tmp_path) -> None:
    write("name: first\n", "config.yaml")
    assert load_experiment(tmp_path).name == "first"


# ── what is said about a wrong file ─────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "F: the file is empty, expected keys"),
        ("# only a comment\n", "F: the file is empty"),
        ("- a\n- b\n", "F:1: found a list, expected keys with values"),
        ("just words\n", "F:1: found only the text 'just words', expected keys"),
        ("train:\n\tepochs: 3\n", "F:2: found a tab character; YAML is indented with spaces"),
        ("task:\n  user_prompt: Which: this?\n", "F:2: not valid YAML: mapping values are not allowed here"),
        ("seed: 1\n---\nseed: 2\n", "F:2: found a second document"),
        ("task: {labels: [a, b}\n", "F:1: not valid YAML"),
        ("seed: 'open\n", "F:2: not valid YAML: while scanning a quoted scalar"),
        ("name: a\nseed: !!python/object/apply:os.system ['true']\n", "F:2: found the tag"),
        ("data: !custom x\n", "F:1: found the tag '!custom'"),
        ("task: &a {labels: [*a]}\n", "unfold without end"),
        ("? [a, b]\n: 1\n", "F:1: found a list or mapping as a key"),
        ("data: {<<: 5}\n", "F:1: '<<' merges mappings"),
        ("name: a\x01b\n", "F:1: found the control character U+0001"),
        (b"name: \xff\xfe\n", "F: byte 6 is not UTF-8"),
    ],
)
def test_a_file_of_no_experiment_names_its_line(write, text, expected) -> None:
    assert expected in message(write(text))


def test_aliases_that_unfold_to_millions_are_refused(write) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 9)]
    assert "unfold without end" in message(write("\n".join(lines)))


def test_a_missing_file_is_refused(tmp_path) -> None:
    with pytest.raises(ConfigError, match=r"gone\.yaml: no such file"):
        load_experiment(tmp_path / "gone.yaml")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("nmae: a\n", "1: nmae: unknown key. Did you mean 'name'? Known keys at the top: name, seed, output_dir"),
        ("train:\n  learning_rat: 1\n", "2: train.learning_rat: unknown key. Did you mean 'learning_rate'? Known"),
        ("train: {rank: 8}\n", "1: train.rank: unknown key. Did you mean 'adapter.rank'?"),
        ("rank: 8\n", "1: rank: unknown key. Did you mean 'adapter.rank'?"),
        ("train: {seed: 8}\n", "Did you mean 'seed'?"),
        ("seed: 1\nseed: 2\n", "2: seed: the key appears twice (first at 1)"),
        ("train: {epochs: 1, epochs: 2}\n", "1: train.epochs: the key appears twice"),
        ("train: {learning_rate: fast}\n", "1: train.learning_rate: found 'fast', expected a number."),
        ("train: {learning_rate: 0}\n", "found '0', expected a number above 0."),
        ("train: {learning_rate: .inf}\n", "found '.inf', expected a finite number"),
        ("train: {learning_rate: nan}\n", "found 'nan', expected a finite number"),
        ("train: {batch_size: 2.5}\n", "found '2.5', expected a whole number."),
        ("train: {batch_size: yes}\n", "found 'yes', expected a whole number."),
        ("seed: -1\n", "1: seed: found '-1', expected a number at least 0."),
        ("seed:\n", "1: seed: found nothing, expected a whole number."),
        ("adapter: {dropout: 1}\n", "found '1', expected a number below 1."),
        ("train: {betas: [0.9]}\n", "train.betas: found a list of 1, expected a list of 2 numbers."),
        ("train: {betas: 0.9}\n", "train.betas: found '0.9', expected a list of 2 numbers."),
        ("train: [1]\n", "1: train: found a list of 1, expected keys with values."),
        ("train: fast\n", "1: train: found 'fast', expected keys with values."),
        ("data: {source: {a: 1}}\n", "data.source: found keys with values, expected text."),
        ("adapter: {targets: attention}\n", "found 'attention', expected a list, such as [first, second]."),
        ("adapter: {rslora: maybe}\n", "found 'maybe', expected true or false."),
        ("task: {type: choise}\n", "expected one of choice, bool, score, text (did you mean 'choice'?)."),
        ("task: {labels: [a, null]}\n", "task.labels[1]: found 'null', which YAML reads as no value"),
        ("task: {labels: [a, b, a]}\n", "task.labels[2]: found 'a' again (first as item 1)"),
        ("task: {labels: [a, b, 'a ']}\n", "task.labels[2]: found 'a ' again (first as item 1)"),
        ("task: {label_names: {a: x, b: 'x '}}\n", "'x' is already the name of 'a'"),
        ("task: {type: bool}\n", "write the yes-or-no question"),
        ("task: {type: bool, user_prompt: Is it?, labels: [a, b]}\n", "The labels of a bool are no and yes."),
        ("task: {type: score, labels: [a, b]}\n", "Name the levels in task.levels."),
        ("task: {levels: [a, b]}\n", "expected task.type: score"),
        ("task: {type: score, levels: [low, high, low]}\n", "task.levels[2]: found 'low' again (first as item 1)"),
        ("task: {labels: [a, '']}\n", "task.labels[1]: found an empty label"),
        ("task: {labels: [a]}\n", "task.labels: found one label, expected at least two"),
        ("task: {labels: []}\n", "task.labels: found an empty list"),
        ("task: {labels: {0: a, 1: b}}\n", "task.labels: found keys with values, expected a list"),
        ("task: {label_names: {a: {x: y}}}\n", "found keys with values, expected text or a list"),
        ("task: {label_names: {a: []}}\n", "task.label_names.a: found an empty name"),
        ("task: {label_names: {a: x, b: [y, x]}}\n", "'x' is already the name of 'a'"),
        ("task: {labels: [bee, fly], label_names: {be: x}}\n", "not among task.labels. Unknown label 'be'. Did you"),
        ("task: {labels: [bee, fly], label_names: {bee: fly}}\n", "'fly' is the name of another label"),
        ("adapter: {parts: [conector]}\n", "adapter.parts[0]: Unknown part 'conector'. Did you mean 'connector'?"),
        ("adapter: {learning_rate_factors: {vison_mlp: 0.1}}\n", "Did you mean 'vision_mlp'?"),
        ("adapter: {targets: []}\n", "adapter.targets: found an empty list and no adapter.parts"),
        ("adapter: {targets: [mlp], parts: [everything]}\n", "found 'everything' beside adapter.targets"),
        ("model: {min_image_tokens: 9, max_image_tokens: 8}\n", "found 9, expected at most model.max_image_tokens (8)"),
        ("name: a/b\n", "1: name: found 'a/b', expected the name of one folder"),
    ],
)  # fmt: skip
def test_a_wrong_value_names_line_key_and_expectation(write, text, expected) -> None:
    (only,) = problems(write(text))
    assert expected in only


def test_all_problems_are_reported_at_once_in_the_files_order(write) -> None:
    path = write(
        "nmae: a\n"
        "seed: x\n"
        "train:\n"
        "  epochs: 0\n"
        "  schedul: cosine\n"
        "task:\n"
        "  labels: [a, a]\n"
        "data: ./gone\n"
        "adapter: {rank: 0, parts: [nothing]}\n"
    )
    found = problems(path, "train.lr=1", "evaluate.limit=0")
    assert [line.split(": ")[:2] for line in found] == [
        ["1", "nmae"],
        ["2", "seed"],
        ["4", "train.epochs"],
        ["5", "train.schedul"],
        ["7", "task.labels[1]"],
        ["8", "data.source"],
        ["9", "adapter.rank"],
        ["9", "adapter.parts[0]"],
        ["--set train.lr=1", "train.lr"],
        ["--set evaluate.limit=0", "evaluate.limit"],
    ]


def test_another_schema_is_checked_in_the_same_way(write) -> None:
    path = write("model: small\nwhole: {stps: 3}\ntower: {steps: 5e1}\n")
    with pytest.raises(InvalidExperimentError) as caught:
        load_section(path, Pretraining, ["whole.learning_rate=fast"])
    assert [str(problem).replace(f"{path}:", "") for problem in caught.value.problems] == [
        "1: model: found 'small', expected keys with values.",
        "2: whole.stps: unknown key. Did you mean 'steps'? Known keys of whole: "
        + ", ".join(WholeStage.model_fields)
        + ".",
        "--set whole.learning_rate=fast: whole.learning_rate: found 'fast', expected a number.",
    ]


# ── overrides ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_overrides_are_typed_as_yaml_and_the_last_one_stands(write) -> None:
    experiment = load_experiment(
        write("train: {learning_rate: 1}\ntask:\n"),
        [
            "train.learning_rate=1e-3",
            "adapter.rslora=true",
            "task.labels=[cat, 7]",
            "task.label_names.cat=house cat",
            "train.betas=[0.8, 0.9]",
            "seed=1",
            "seed=2",
            "adapter.learning_rate_factors.vision_mlp=0.1",
        ],
    )
    assert experiment.train.learning_rate == 1e-3
    assert experiment.adapter.rslora
    assert experiment.task.labels == ["cat", "7"]
    assert experiment.task.label_names == {"cat": "house cat"}
    assert experiment.train.betas == (0.8, 0.9)
    assert experiment.seed == 2
    assert experiment.adapter.learning_rate_factors == {"vision_mlp": 0.1}


def test_a_text_setting_takes_the_override_as_typed(write) -> None:
    path = write("task: {system_prompt: gone}\nmodel: {revision: x}\n")
    task = load_experiment(
        path, ["task.user_prompt={labels}: which? #1 'of' all", "task.system_prompt='null'", "model.revision=null"]
    )
    assert task.task.user_prompt == "{labels}: which? #1 'of' all"
    assert task.task.system_prompt == "null"
    assert task.model.revision is None


def test_an_override_reaches_into_a_section_written_as_plain_text(write) -> None:
    data = load_experiment(write("data: uoft-cs/cifar100\n"), ["data.limit=5"]).data
    assert (data.source, data.limit) == ("uoft-cs/cifar100", 5)
    assert load_experiment(write("data: {limit: 3}\n"), ["data=builtin:digits"]).data.source == "builtin:digits"


@pytest.mark.parametrize(
    ("override", "expected"),
    [
        ("seed", "--set seed: expected key=value"),
        ("=3", "--set =3: expected key=value"),
        ("train..x=3", "expected key=value"),
        ("train.learning_rat=1", "--set train.learning_rat=1: train.learning_rat: unknown key. Did you mean"),
        ("train.epochs=many", "--set train.epochs=many: train.epochs: found 'many', expected a number."),
        ("task.labels=[a", "--set task.labels=[a: not valid YAML"),
        ("seed.x=1", "--set seed.x=1: seed is set to a value (F:1), so it has no key 'x'"),
        ("train=5", "--set train=5: train: found '5', expected keys with values."),
        ("data.source=./gone", "--set data.source=./gone: data.source: found './gone'"),
    ],
)
def test_a_wrong_override_is_named(write, override, expected) -> None:
    assert expected in message(write("seed: 1\n"), override)


# ── writing ─────────────────────────────────────────────────────────────────────────────────────────────────────────

TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"], include_characters="\n\t"), min_size=1, max_size=12)
LABEL = st.one_of(
    TEXT, st.sampled_from(["yes", "No", "on", "null", "~", "010", "1e3", "5e-4", "=", "<<", "- a", "a: b"])
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    labels=st.lists(LABEL.filter(str.strip), min_size=2, unique=True),
    prompt=TEXT | st.none(),
    rate=st.floats(1e-12, 1e9),
)
def test_a_dumped_experiment_loads_as_itself(tmp_path, labels, prompt, rate) -> None:
    experiment = Experiment(name="x", task=TaskSection(labels=labels, user_prompt=prompt))
    experiment.train.learning_rate = rate
    path = tmp_path / "x.yaml"
    path.write_text(dump(experiment), encoding="utf-8")
    assert load_experiment(path) == experiment


def test_a_dump_keeps_the_schemas_order_and_prompts_as_blocks() -> None:
    text = dump(Experiment(adapter=AdapterSection(rank=4), task=TaskSection(user_prompt="one\ntwo")))
    assert text.index("model:") < text.index("data:") < text.index("task:") < text.index("adapter:")
    assert "user_prompt: |-\n    one\n    two\n" in text
    assert "null" not in text


YAML_VALUE = st.recursive(
    st.sampled_from(["1", "-1", "0.5", "yes", "~", "x", "'x'", "5e-4", ".nan", "2024-01-01", "builtin:digits", '""']),
    lambda inner: (
        st.lists(inner, max_size=3).map(lambda items: f"[{', '.join(items)}]")
        | st.dictionaries(st.sampled_from(["a", "yes", "1", "source", "rank", "labels"]), inner, max_size=3).map(
            lambda items: "{" + ", ".join(f"{key}: {value}" for key, value in items.items()) + "}"
        )
    ),
    max_leaves=5,
)
KEYS = sorted(
    set(Experiment.model_fields)
    | {
        f"{section}.{key}"
        for section, info in Experiment.model_fields.items()
        for key in getattr(info.annotation, "model_fields", ())
    }
)


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(settings_=st.lists(st.tuples(st.sampled_from([*KEYS, "x", "train.x"]), YAML_VALUE), min_size=1, max_size=6))
def test_whatever_is_set_is_an_experiment_or_a_config_error(write, settings_) -> None:
    path = write("seed: 1\n")
    try:
        load_experiment(path, [f"{key}={value}" for key, value in settings_])
    except ConfigError as error:
        assert "--set " in str(error)
