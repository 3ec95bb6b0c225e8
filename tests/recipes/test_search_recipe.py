"""`recipes/search.py`: from the command line to a student that loads, in one process and in two, and bad input."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from transformers import AutoModel, AutoTokenizer, PreTrainedModel

from tiny_teacher import make_teacher_model, make_texts

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes" / "search.py"


@pytest.fixture(scope="module")
def recipe():
    spec = importlib.util.spec_from_file_location("search_recipe", RECIPE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def settings(teacher_path, tmp_path):
    texts = tmp_path / "texts"
    texts.mkdir()
    for language, seed in (("de", 1), ("sw", 2)):
        (texts / f"{language}.txt").write_text("\n".join(make_texts(150, seed)) + "\n")
    space = tmp_path / "space.yaml"
    space.write_text(
        "num_hidden_layers: [1, 2]\nnum_attention_heads: [2]\nhidden_size: [8, 16]\nintermediate_size: [16, 24]\n"
    )
    return {
        "output_dir": str(tmp_path / "run"),
        "teacher": str(teacher_path),
        "dataset": [str(texts / "*.txt")],
        "heldout_sentences": 40,
        "space": str(space),
        "controller": "random",
        "num_episodes": 2,
        "candidates_per_episode": 2,
        "mini_kd_epochs": 1,
        "latency_sequence_length": 8,
        "latency_repeats": 3,
        "global_train_batch_size": 16,
        "num_train_epochs": 1,
        "learning_rate": 5e-3,
        "report_to": "none",
        "use_cpu": True,
    }


def write(settings, tmp_path, **changes):
    path = tmp_path / "search.yaml"
    path.write_text(yaml.safe_dump({k: v for k, v in (settings | changes).items() if v is not None}))
    return str(path)


def lines(folder):
    return [json.loads(line) for line in (Path(folder) / "architectures.jsonl").read_text().splitlines()]


def test_search_ends_with_a_student_that_loads_and_a_card(recipe, settings, tmp_path):
    recipe.main([write(settings, tmp_path), "--num_episodes", "1"])
    assert len(lines(settings["output_dir"])) == 2
    student = Path(settings["output_dir"]) / "student"
    model, tokenizer = AutoModel.from_pretrained(student), AutoTokenizer.from_pretrained(student)
    assert model(**tokenizer("bap dat", return_tensors="pt")).last_hidden_state.isfinite().all()
    card = (student / "README.md").read_text()
    (measured,) = json.loads((Path(settings["output_dir"]) / "distillation.json").read_text())
    assert f"| {measured['quality']:.3f} |" in card
    assert "Scores on downstream tasks were not measured." in card
    assert str(tmp_path) not in card  # no local paths
    assert "base_model" not in card  # a local teacher has no place on the Hub
    assert "language:\n- de\n- sw\n" in card
    evidence = {path.name for path in (student / "evidence").iterdir()}
    assert evidence >= {"training.json", "search.json", "architectures.jsonl", "latency.json", "pareto.png"}
    assert len((student / "evidence" / "architectures.jsonl").read_text().splitlines()) == 2
    assert "2 of the 8 architectures of the search space" in card
    before = (student / "evidence" / "latency.json").read_text()
    recipe.main([write(settings, tmp_path), "--num_episodes", "1"])  # again, after its end
    assert (student / "evidence" / "latency.json").read_text() == before
    assert (student / "README.md").read_text() == card


def test_a_student_with_the_tokens_of_its_text_is_left_beside_it(recipe, settings, tmp_path):
    for path in (tmp_path / "texts").iterdir():  # text that has not all of the teacher's words
        lines_of_words = [line.split() for line in path.read_text().splitlines()]
        path.write_text("\n".join(" ".join(w for w in words if w[0] in "bdg") for words in lines_of_words))
    config = write(settings, tmp_path, num_episodes=1)
    recipe.main([config])
    run = Path(settings["output_dir"])
    assert not (run / "student-trimmed").exists()
    recipe.main([config, "--trim_vocabulary", "true"])  # again, after its end
    whole, trimmed = (AutoModel.from_pretrained(run / name) for name in ("student", "student-trimmed"))
    tokenizer = AutoTokenizer.from_pretrained(run / "student-trimmed")
    assert trimmed.config.vocab_size == len(tokenizer) < whole.config.vocab_size
    text = "bap dat gup"
    before = AutoTokenizer.from_pretrained(run / "student")(text, return_tensors="pt")
    torch.testing.assert_close(trimmed(**tokenizer(text, return_tensors="pt"))[0], whole(**before)[0], rtol=0, atol=0)
    measured = json.loads((run / "student-trimmed" / "evidence" / "compression.json").read_text())
    assert measured["vocab_size"] == trimmed.config.vocab_size
    assert measured["heldout_sentences"] == settings["heldout_sentences"]
    assert not list(run.glob(".student*"))
    written = (run / "student-trimmed" / "README.md").stat().st_mtime_ns
    recipe.main([config, "--trim_vocabulary", "true"])
    assert (run / "student-trimmed" / "README.md").stat().st_mtime_ns == written


def launch(config, *arguments, environment=None):
    accelerate = [sys.executable, "-m", "accelerate.commands.launch", *arguments]
    return subprocess.run(
        [*accelerate, str(RECIPE), config],
        cwd=ROOT, env=os.environ | (environment or {}), capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.long
def test_two_processes_measure_what_one_measures(settings, tmp_path):
    # the second episode depends on the first one's rewards, and these on the losses alone: latency is noise here
    settings |= {"controller": "lstm", "epsilon_decay": 1.0, "reward_alpha": 0.0}
    two = launch(
        write(settings, tmp_path, output_dir=str(tmp_path / "two")),
        "--config_file", str(ROOT / "recipes" / "accelerate" / "two_cpu_processes.yaml"),
    )  # fmt: skip
    assert two.returncode == 0, two.stderr[-3000:]
    one = launch(write(settings, tmp_path, output_dir=str(tmp_path / "one")), "--num_processes", "1", "--cpu")
    assert one.returncode == 0, one.stderr[-3000:]
    first, second = lines(tmp_path / "one"), lines(tmp_path / "two")
    assert len(first) == len(second) == 4
    for a, b in zip(first, second, strict=True):
        assert a["architecture"] == b["architecture"]
        assert a["tokens"] == b["tokens"] > 0
        assert a["loss"] == pytest.approx(b["loss"], rel=2e-3)
    assert (tmp_path / "two" / "student" / "model.safetensors").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_episode": 3}, "did you mean num_episodes?"),
        ({"controller": "lsmt"}, "did you mean 'lstm'"),
        ({"quality": "heldut"}, "quality='heldut' is unknown"),
        ({"layer_mapping": "unifrom"}, "did you mean 'uniform'"),
        ({"layer_mapping": "1:9"}, "teacher layer 9, but the teacher has layers 1 to 4"),
        ({"space": "tiny"}, "neither a preset"),
        ({"teacher": "/nowhere/teacher"}, "/nowhere/teacher"),
        ({"dataset": ["/nowhere/*.txt"]}, "/nowhere/"),
        ({"heldout_sentences": 100000}, "heldout_sentences"),
        ({"global_train_batch_size": 15, "gradient_accumulation_steps": 2}, "not divisible"),
        ({"latency_sequence_length": 4096}, "latency_sequence_length=4096"),
    ],
)
def test_bad_input_is_refused_with_the_remedy(recipe, settings, tmp_path, changes, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message.replace("?", "\\?").replace("*", "\\*")):
        recipe.main([write(settings, tmp_path, **changes)])
    assert not (Path(settings["output_dir"]) / "study.db").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"speedup": 4, "speedup_budgets": [2]}, "speedup_budgets=2 is wider than speedup=4"),
        ({"max_parameters": 100}, "no architecture of the space meets the budget .*or a larger max_parameters"),
        ({"max_size_mb": 0.001}, "no architecture of the space meets the budget"),
        ({"max_flops": 1.0}, "no architecture of the space meets the budget"),
        ({"max_memory_mb": -1}, "memory_mb=-1 must be positive"),
        ({"epsilon_decay": 0.2}, "epsilon_decay=0.2 is an option of controller=lstm"),
        ({"controller": "hand"}, "controller='hand' and hand=None"),
        ({"controller": "hand", "hand": "HAND"}, "entry 2 .* is not in the search space"),
        ({"quality": "probe:nothing"}, "quality=probe:nothing: .*nothing"),
        ({"quality": "probe:wikiann", "data_dir": "/nowhere"}, "quality=probe:wikiann: .*nowhere"),
        ({"data_dir": "/nowhere"}, "data_dir='/nowhere' is for quality=probe"),
        ({"latency_lengths": ["8:x"]}, "must be lengths like 128"),
        ({"latency_device": "cuda:9"}, "device='cuda:9'"),
    ],
)
def test_bad_budgets_lists_and_probes_are_one_line_before_the_teacher_is_loaded(
    recipe, settings, tmp_path, changes, message, monkeypatch
):
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", lambda *args, **kwargs: pytest.fail("it was loaded"))
    hand = tmp_path / "hand.yaml"
    shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "hidden_size": 8, "intermediate_size": 16}
    hand.write_text(yaml.safe_dump([shape, shape | {"hidden_size": 64}]))
    changes = {name: str(hand) if value == "HAND" else value for name, value in changes.items()}
    with pytest.raises((ValueError, FileNotFoundError), match=message) as error:
        recipe.main([write(settings, tmp_path, **changes)])
    assert "\n" not in str(error.value)
    assert not (Path(settings["output_dir"]) / "config.yaml").exists()


def test_spaces_that_cannot_be_are_refused(recipe, settings, tmp_path):
    Path(settings["space"]).write_text(
        "num_hidden_layers: [1]\nnum_attention_heads: [3]\nhidden_size: [8]\nintermediate_size: [16]\n"
    )
    with pytest.raises(ValueError, match="no num_attention_heads"):
        recipe.main([write(settings, tmp_path)])
    Path(settings["space"]).write_text(
        "num_hidden_layers: [1]\nnum_attention_heads: [2]\nhidden_size: [8]\nintermediate_size: [16]\n"
        "hidden_act: [gleu]\n"
    )
    with pytest.raises(ValueError, match="did you mean 'gelu'"):
        recipe.main([write(settings, tmp_path)])


def test_unwritable_output_directory_is_refused(recipe, settings, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match="cannot be written"):
        recipe.main([write(settings, tmp_path, output_dir=str(tmp_path / "file" / "run"))])


def test_empty_corpus_and_wrong_column_are_refused(recipe, settings, tmp_path):
    empty = tmp_path / "empty.txt"
    empty.write_text("\n\n")
    with pytest.raises(ValueError, match=r"empty\.txt|no sentence|empty"):
        recipe.main([write(settings, tmp_path, dataset=[str(empty)])])
    table = tmp_path / "table.jsonl"
    table.write_text('{"sentence": "bap dat", "lang": "x"}\n')
    with pytest.raises(ValueError, match=r"text_column='text'.*sentence"):
        recipe.main([write(settings, tmp_path, dataset=[str(table)])])


def test_a_run_directory_of_another_configuration_is_refused(recipe, settings, tmp_path):
    recipe.main([write(settings, tmp_path), "--num_episodes", "1"])
    with pytest.raises(ValueError, match=r"search\.mini_kd_epochs: 1 there, 2.0 now"):
        recipe.main([write(settings, tmp_path), "--mini_kd_epochs", "2"])
    recipe.main([write(settings, tmp_path), "--num_episodes", "2"])  # goes on
    assert len(lines(settings["output_dir"])) == 4


def test_errors_are_one_message_without_a_traceback(settings, tmp_path):
    result = subprocess.run(
        [sys.executable, str(RECIPE), write(settings, tmp_path, num_episode=3)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1
    assert "error: " in result.stderr
    assert "Traceback" not in result.stderr


OF_OTHER_RECIPES = ("distill", "embeddings", "intents")
CONFIGURATIONS = sorted(p for p in (ROOT / "recipes" / "configs").glob("*.yaml") if p.stem not in OF_OTHER_RECIPES)


@pytest.mark.parametrize("path", CONFIGURATIONS, ids=lambda path: path.stem)
def test_configurations_of_the_recipes_parse(path, tmp_path, monkeypatch):
    from kdnas_hf import (
        DataArguments,
        DistillationTrainingArguments,
        SearchArguments,
        SearchSpace,
        TeacherArguments,
        parse_arguments,
    )

    _, _, search, training = parse_arguments(
        (TeacherArguments, DataArguments, SearchArguments, DistillationTrainingArguments),
        [str(path), "--use_cpu", "true"],
    )
    assert len(SearchSpace.load(search.space)) > search.candidates_per_episode
    assert training.output_dir.startswith("runs/")


def test_published_configuration_is_the_published_recipe():
    values = yaml.safe_load((ROOT / "recipes" / "configs" / "published.yaml").read_text())
    expected = {
        "num_episodes": 15, "candidates_per_episode": 20, "proxy_fraction": 0.3, "mini_kd_epochs": 5,
        "reward": "published", "confirm": 0,
        "layer_mapping": "uniform+last", "projection": "shared", "hidden_state_normalization": "none",
        "student_init": "random", "controller": "lstm", "epsilon_start": 1.0, "epsilon_decay": 0.05, "space": "kdnas",
    }  # fmt: skip
    assert {key: values.get(key) for key in expected} == expected


def test_a_decoder_is_no_teacher(recipe, settings, tokenizer, tmp_path):
    from transformers import GPT2Config, GPT2Model

    path = tmp_path / "decoder"
    GPT2Model(GPT2Config(vocab_size=300, n_embd=32, n_layer=2, n_head=2, n_positions=64)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    with pytest.raises(ValueError, match="one direction only"):
        recipe.main([write(settings, tmp_path, teacher=str(path))])


def test_a_teacher_without_fast_tokenizer_is_refused(recipe, settings, tmp_path):
    path = tmp_path / "bare"
    make_teacher_model().save_pretrained(path)
    with pytest.raises(ValueError, match="tokenizer"):
        recipe.main([write(settings, tmp_path, teacher=str(path))])


@pytest.mark.parametrize("pays_off", [True, False])
def test_bf16_is_chosen_where_it_pays_off(tmp_path, monkeypatch, pays_off):
    from kdnas_hf import DistillationTrainingArguments
    from kdnas_hf.distillation import arguments

    monkeypatch.setattr(arguments, "bf16_pays_off", lambda use_cpu: pays_off)
    assert DistillationTrainingArguments(output_dir=str(tmp_path), auto_bf16=True, report_to="none").bf16 == pays_off
