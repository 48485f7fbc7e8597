"""Files of the two older repos: what every key becomes, and what is said about it."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests import older_files
from vlmtune.config import defaults
from vlmtune.config.load import InvalidExperimentError, dump, load_experiment
from vlmtune.config.older.class_lists import find_list
from vlmtune.config.older.schema import OlderEvaluation, OlderFineTuning
from vlmtune.config.schema import Experiment
from vlmtune.errors import ConfigError
from vlmtune.text.defaults import fill_labels

pytestmark = pytest.mark.unit


def load(folder: Path, text: str, *overrides: str, faithful: bool = False) -> tuple[Experiment, str]:
    """The experiment that an older text stands for, and all notes about it."""
    path = folder / "older.yaml"
    path.write_text(text)
    notes: list[str] = []
    experiment = load_experiment(path, overrides, must_exist=False, faithful=faithful, note=notes.append)
    return experiment, "\n".join(notes)


def test_every_key_of_the_older_schema_is_known() -> None:
    fine_tuning = """seed use_wandb model_name max_seq_length checkpoint_path dataset_name dataset_samples
        dataset_image_column dataset_label_colum dataset_splits label_mapping train_split_ratio preprocessing_workers
        system_prompt user_prompt use_peft lora_r lora_alpha lora_dropout lora_bias use_rslora lora_target_modules
        learning_rate num_train_epochs batch_size gradient_accumulation_steps optim warmup_ratio weight_decay
        logging_steps eval_steps wandb_entity wandb_project_name wandb_experiment_name skip_eval output_dir
        modal_app_name"""
    evaluation = """seed model base_model structured_generation dataset split n_samples system_prompt user_prompt
        image_column label_column label_mapping"""
    assert set(OlderFineTuning.model_fields) == set(fine_tuning.split())
    assert set(OlderEvaluation.model_fields) == set(evaluation.split())


def test_the_cifar_file_becomes_our_recipe(tmp_path: Path) -> None:
    found, notes = load(tmp_path, older_files.cifar_fine_tuning())
    assert (found.name, found.seed, found.model.base) == ("older", 23, "LiquidAI/LFM2-VL-3B")
    data = found.data
    assert (data.source, data.image_column, data.label_column) == ("someone/cifar100", "img", "fine_label")
    assert (data.train_split, data.limit, data.limit_validation) == ("train", 45_000, 5_000)
    assert data.validation_fraction == pytest.approx(0.1)
    assert found.task.labels == ["0", "1", "2", "3", "4", "5"]
    assert found.task.label_names == dict(enumerate_text(older_files.CIFAR_NAMES))
    assert found.task.system_prompt is not None and "  - {labels}\n"[2:] in found.task.system_prompt
    assert found.adapter.targets == ["attention", "mlp", "conv", "connector"] and found.adapter.rank == 16
    train = found.train
    assert (train.learning_rate, train.loss, train.schedule) == (2e-4, "answer", "linear")
    # 4 × 4 is one tree of 16: as many steps, and the prompt is paid once.
    assert (train.batch_size, train.gradient_accumulation) == (16, 1)
    assert found.tracking is None
    assert (
        "without effect here: max_seq_length, preprocessing_workers, logging_steps, skip_eval, modal_app_name" in notes
    )
    assert "o_proj, gate_proj, up_proj, down_proj match nothing in LFM2-VL" in notes
    assert "8 attention layers of the decoder and the 27 of the vision tower only" in notes
    assert "loss: on the answer only" in notes


def enumerate_text(names: tuple[str, ...]) -> list[tuple[str, str]]:
    return [(str(index), name) for index, name in enumerate(names)]


def test_faithful_keeps_loss_layers_batch_and_prompt(tmp_path: Path) -> None:
    text = older_files.cifar_fine_tuning()
    found, notes = load(tmp_path, text, faithful=True)
    assert found.adapter.targets == ["q_proj", "k_proj", "v_proj"] and found.adapter.parts == []
    assert (found.train.loss, found.train.batch_size, found.train.gradient_accumulation) == ("all", 4, 4)
    assert found.task.system_prompt == yaml.safe_load(text)["system_prompt"]
    assert "Kept as it was: q_proj, k_proj, v_proj" in notes
    decided = defaults.apply(found, num_train=45_000, num_labels=100)
    assert defaults.num_steps(decided, 45_000) == 8_439


def test_a_list_that_agrees_is_kept_as_written(tmp_path: Path) -> None:
    text = older_files.cifar_fine_tuning()
    found, _ = load(tmp_path, text)
    assert found.task.system_prompt is not None
    shown = fill_labels(found.task.system_prompt, older_files.CIFAR_NAMES)
    assert shown == yaml.safe_load(text)["system_prompt"]


def test_the_cars_file_takes_its_labels_from_the_column(tmp_path: Path) -> None:
    found, notes = load(tmp_path, older_files.cars_fine_tuning())
    assert found.task.labels is None and found.task.label_names is None
    assert found.data.label_column == "maker" and "labels are what the column 'maker' holds" in notes
    assert found.task.user_prompt == "Who made this car? Pick one:\n\n- {labels}\n"
    assert (found.data.limit, found.data.train_split) == (5_400, "train")
    assert found.train.learning_rate == 5e-4
    assert (found.train.batch_size, found.train.gradient_accumulation) == (16, 1)
    assert found.adapter.rslora and "use_rslora: was read there and never used; it is used here." in notes
    assert "checkpoint-500 is a state of the older repo's trainer" in notes
    # use_wandb is true there when it is left out.
    assert found.tracking is not None and found.tracking.to == ["wandb"] and "--set use_wandb=false" in notes
    assert not load(tmp_path, older_files.cars_fine_tuning(), faithful=True)[0].adapter.rslora


def test_what_a_file_leaves_out_is_what_it_was_there(tmp_path: Path) -> None:
    found, notes = load(tmp_path, "dataset_name: a/b\nuse_wandb: false\n")
    assert (found.model.base, found.seed, found.output_dir) == ("LiquidAI/LFM2-VL-450M", 23, "outputs")
    # use_peft is false there when it is left out: no LoRA at all.
    assert (found.adapter.targets, found.adapter.parts) == ([], ["everything"]) and "is left out" in notes
    adapted, notes = load(tmp_path, "dataset_name: a/b\nuse_peft: true\n", "use_wandb=false")
    assert (adapted.adapter.rank, adapted.adapter.alpha, adapted.adapter.dropout) == (16, 32, 0)
    assert "o_proj, gate_proj, up_proj, down_proj match nothing" in notes
    assert adapted.tracking is None


def test_a_lora_list_that_reaches_all_it_names_is_kept(tmp_path: Path) -> None:
    text = "dataset_name: a/b\nuse_peft: true\nlora_target_modules: [q_proj, w1, w2]\n"
    found, notes = load(tmp_path, text)
    assert found.adapter.targets == ["q_proj", "w1", "w2"] and "match nothing" not in notes


def test_evaluation_measures_the_whole_split_unless_faithful(tmp_path: Path) -> None:
    text = older_files.cifar_evaluation("LiquidAI/LFM2-VL-3B", None)
    found, notes = load(tmp_path, text)
    assert found.model.base == "LiquidAI/LFM2-VL-3B" and found.evaluate.checkpoint == "base"
    assert (found.data.test_split, found.evaluate.limit) == ("test", None)
    assert "uncertain by up to ±7 points" in notes
    assert load(tmp_path, text, faithful=True)[0].evaluate.limit == 200


def test_a_checkpoint_is_found_by_base_file_or_name(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint-8439"
    folder.mkdir()
    found, _ = load(tmp_path, older_files.cifar_evaluation(str(folder), "LiquidAI/LFM2-VL-1.6B"))
    assert (found.model.base, found.evaluate.checkpoint) == ("LiquidAI/LFM2-VL-1.6B", str(folder))
    (folder / "adapter_config.json").write_text('{"base_model_name_or_path": "LiquidAI/LFM2-VL-450M"}')
    found, _ = load(tmp_path, older_files.cars_evaluation(str(folder)))
    assert (found.model.base, found.evaluate.checkpoint) == ("LiquidAI/LFM2-VL-450M", str(folder))
    found, notes = load(tmp_path, older_files.cars_evaluation())
    assert found.model.base == "LiquidAI/LFM2-VL-3B" and "by the checkpoint's name" in notes


def test_a_checkpoint_in_the_older_volume_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "cars.yaml"
    path.write_text(older_files.cars_evaluation())
    with pytest.raises(InvalidExperimentError, match=r"cars\.yaml:2: evaluate\.checkpoint: found '/model_checkpoints/"):
        load_experiment(path)


def test_several_spellings_are_one_label(tmp_path: Path) -> None:
    found, notes = load(tmp_path, older_files.actions_evaluation())
    assert found.task.label_names == {
        "0": "calling",
        "1": "clapping",
        "2": ["listening_to_music", "listening to music"],
    }
    assert "It spelled 'listening_to_music' as 'listening to music'" in notes
    assert found.task.user_prompt is not None and "- {labels}" in found.task.user_prompt
    assert "split: train holds images" in notes


@pytest.mark.parametrize(
    ("prompt", "names", "expected"),
    [
        ("Pick:\n* a cat\n* dog\n", ["a cat", "dog"], "Pick:\n* {labels}\n"),
        ("Is it cat, dog or sea otter?", ["cat", "dog", "sea_otter"], "Is it {labels}?"),
        ("Is it a cat or a dog?", ["cat", "dog"], None),  # sentences are not lists
        ("Rules:\n- Be brief.\n- Be exact.\nClasses:\n- cat\n- dog", ["cat", "dog"], None),
        ("No list here.", None, None),
    ],
)
def test_class_lists_are_found_where_they_are(prompt: str, names: list[str] | None, expected: str | None) -> None:
    found = find_list(prompt, names)
    if expected is None and found is not None:
        expected = "Rules:\n- Be brief.\n- Be exact.\nClasses:\n- {labels}"  # the run with classes in it
    assert (found and found.prompt) == expected


def test_classes_that_the_list_lacks_or_has_beyond_are_told(tmp_path: Path) -> None:
    text = older_files.cifar_fine_tuning().replace("  - bee\n", "  - wasp\n", 1)
    _, notes = load(tmp_path, text)
    assert "It lacked bee." in notes and "It named wasp, which is no label." in notes


def test_overrides_may_name_keys_of_either_schema(tmp_path: Path) -> None:
    found, _ = load(
        tmp_path, older_files.pets_fine_tuning(), "learning_rate=1e-3", "model.base=builtin:tiny", "train.max_steps=7"
    )
    assert (found.train.learning_rate, found.model.base, found.train.max_steps) == (1e-3, "builtin:tiny", 7)


def test_mistakes_are_told_with_line_and_key(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("dataset_name: a/b\nlerning_rate: 5e-4\nlora_r: none\ntrain_split_ratio: 90\n")
    with pytest.raises(InvalidExperimentError) as caught:
        load_experiment(path)
    lines = [str(problem).replace(str(path), "F") for problem in caught.value.problems]
    assert lines[0].startswith("F:2: lerning_rate: unknown key. Did you mean 'learning_rate'?")
    assert lines[1:] == [
        "F:3: lora_r: found 'none', expected a whole number.",
        "F:4: train_split_ratio: found '90', expected a number below 1.",
    ]
    path.write_text("model_name: a/b\nnum_train_epochs: 3\n")
    with pytest.raises(InvalidExperimentError, match="dataset_name: is missing"):
        load_experiment(path)


def test_a_mistake_keeps_the_older_line(tmp_path: Path) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text("use_wandb: false\ndataset_name: ./nowhere\n")
    with pytest.raises(InvalidExperimentError, match=r"wrong\.yaml:2: data\.source: found './nowhere'"):
        load_experiment(path)


def test_our_own_files_are_not_taken_for_older_ones(tmp_path: Path) -> None:
    path = tmp_path / "own.yaml"
    path.write_text("data: builtin:digits\nbatch_size: 3\n")
    with pytest.raises(InvalidExperimentError, match=r"own\.yaml:2: batch_size: unknown key.*train\.batch_size"):
        load_experiment(path)
    path.write_text("data: builtin:digits\n")
    with pytest.raises(ConfigError, match="--faithful is for files of the older repos"):
        load_experiment(path, faithful=True)


@pytest.mark.parametrize("faithful", [False, True])
@pytest.mark.parametrize(
    "text", [older_files.cifar_fine_tuning(), older_files.cars_fine_tuning(), older_files.actions_evaluation()]
)
def test_what_is_converted_loads_as_the_same_experiment(tmp_path: Path, text: str, faithful: bool) -> None:
    found, _ = load(tmp_path, text, faithful=faithful)
    again = tmp_path / "ours.yaml"
    again.write_text(dump(found, brief=True))
    assert load_experiment(again) == found
