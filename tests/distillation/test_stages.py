"""Stages: what they may say, what trains in each, and that a killed distillation ends as an undisturbed one."""

import json

import pytest
import torch
import yaml
from test_task_labels import labelled, task_teacher
from test_trainer import SHAPES, arguments, assert_same_weights, config_of, weights
from transformers import TrainerCallback

from kdnas_hf import (
    DistillationTrainer,
    DistillationTrainingArguments,
    KDNASConfig,
    KDNASModel,
    Teacher,
    parse_arguments,
)
from kdnas_hf.distillation import Stage, distill
from kdnas_hf.students import InheritedWordEmbeddings, OccurringWordEmbeddings
from tiny_teacher import make_teacher_model

EVERYTHING = {
    "losses": "hidden_states:1 cosine:0.5", "layer_mapping": "last", "dataset": "de",
    "trains": ["embeddings", "layers:2"], "max_steps": 3, "learning_rate": 1e-4,
    "lr_scheduler_type": "constant", "warmup_fraction": 0.1,
}  # fmt: skip


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            {"trained": "all"},
            "stages: 'trained' is not a field; did you mean 'trains'. Choose from losses, layer_mapping",
        ),
        ({"trains": []}, r"stages: trains=\[\] trains nothing; choose from all, head, layers"),
        ({"trains": ""}, r"stages: trains=\[\] trains nothing"),
        ({"trains": "heads"}, "stages: trains='heads' is unknown; did you mean 'head'. Choose from all, head"),
        ({"trains": "layers:0"}, "stages: trains='layers:0' is not a part; the last two layers are 'layers:2'"),
        ({"trains": "head:2"}, "stages: trains='head:2' is not a part"),
        ({"losses": "cosine:0"}, "the weight of 'cosine:0' is not a positive finite number"),
        ({"losses": "cosine:-1"}, "the weight of 'cosine:-1' is not a positive finite number"),
        ({"losses": "cosin"}, "did you mean 'cosine'"),
        ({"learning_rate": 0}, "stages: learning_rate=0.0 trains nothing; give a positive number, or leave it out"),
        ({"learning_rate": -1e-3}, "stages: learning_rate=-0.001 trains nothing"),
        ({"learning_rate": "fast"}, "stages: learning_rate='fast' is not a number"),
        ({"max_steps": 0}, "stages: max_steps=0 trains nothing"),
        ({"max_steps": 2.5}, "stages: max_steps=2.5 is not a whole number"),
        ({"num_train_epochs": -1}, "stages: num_train_epochs=-1.0 trains nothing"),
        (
            {"num_train_epochs": 1, "max_steps": 5},
            "stages: num_train_epochs and max_steps are two lengths for one stage",
        ),
        ({"lr_scheduler_type": "constent"}, "stages: lr_scheduler_type='constent' is unknown; did you mean 'constant'"),
        ({"warmup_fraction": 1}, r"stages: warmup_fraction=1.0 is not in \[0, 1\)"),
        ("{losses: cosine}", "stages: a stage is a mapping of fields, as {losses: hidden_states"),
        (["cosine"], "stages: a stage is a mapping of fields"),
    ],
)
def test_a_stage_that_makes_no_sense_is_refused_in_a_line(given, message, tmp_path):
    with pytest.raises(ValueError, match=message) as error:
        Stage.parse(given)
    assert "\n" not in str(error.value)
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, stages=[given])


@pytest.mark.parametrize("stage", [{"trains": "head"}, {"trains": "layers head", "losses": "cosine relations"}])
def test_a_head_that_no_loss_of_the_stage_reads_is_refused(stage, tmp_path):
    with pytest.raises(ValueError, match="stages: trains=head trains nothing by (hidden_states|cosine, relations); "):
        arguments(tmp_path, stages=[{"losses": "masked_lm", "trains": "head"}, stage])


@pytest.mark.parametrize("given", [[], 3, ""])
def test_what_is_no_list_of_stages_is_refused(given, tmp_path):
    with pytest.raises(ValueError, match=r"stages"):
        arguments(tmp_path, stages=given)


def test_stages_are_read_from_yaml_and_from_the_command_line(tmp_path):
    stages = [EVERYTHING, {"trains": "embeddings", "num_train_epochs": 2}]
    expected = [Stage.parse(stage) for stage in stages]
    common = ["--output_dir", str(tmp_path), "--use_cpu", "--report_to", "none"]
    file = tmp_path / "distill.yaml"
    file.write_text(yaml.safe_dump({"stages": stages}).replace("learning_rate: 0.0001", "learning_rate: 1e-4"))
    for argv in ([str(file)], ["--stages", *map(json.dumps, stages)]):
        (args,) = parse_arguments((DistillationTrainingArguments,), [*argv, *common])
        assert args.stage_list == expected
        assert [Stage.parse(stage) for stage in yaml.safe_load(yaml.safe_dump(args.stages))] == expected
    changed = expected[0].arguments(args)
    assert {name: getattr(changed, name) for name in ("layer_mapping", "max_steps", "learning_rate")} == {
        "layer_mapping": "last", "max_steps": 3, "learning_rate": 1e-4,
    }  # fmt: skip
    assert changed.loss_weights == {"hidden_states": 1.0, "cosine": 0.5}


class Watch(TrainerCallback):
    """Keeps the arguments of each stage, the texts that it reads, and what changed in its student."""

    def __init__(self):
        self.args, self.texts, self.changed, self.fresh = [], [], [], []

    def on_train_begin(self, args, state, control, model=None, train_dataloader=None, optimizer=None, **kwargs):
        self.args.append(args)
        self.texts.append(len(train_dataloader.dataset))
        self.fresh.append(not optimizer.state)
        self.before = {key: p.detach().clone() for key, p in model.members["student"].model.named_parameters()}

    def on_train_end(self, args, state, control, model=None, **kwargs):
        after = dict(model.members["student"].model.named_parameters())
        assert after.keys() == self.before.keys()
        self.changed.append({key for key, p in after.items() if not torch.equal(p, self.before[key])})


def test_each_stage_has_losses_text_rate_and_length_of_its_own(teacher, train_texts, heldout_texts, tmp_path):
    stages = [
        {
            "losses": "cosine",
            "dataset": "short",
            "learning_rate": 1e-3,
            "max_steps": 2,
            "lr_scheduler_type": "constant",
        },
        {"layer_mapping": "last", "num_train_epochs": 1},
    ]
    texts = {"long": train_texts.select(range(96)), "short": train_texts.select(range(64))}
    watch = Watch()
    args = arguments(tmp_path, stages=stages, max_steps=9, learning_rate=4e-3)
    trainer = distill(config_of("deep", teacher), teacher, args, texts, heldout_texts, callbacks=[watch])
    assert [args.loss_weights for args in watch.args] == [{"cosine": 1.0}, {"hidden_states": 1.0}]
    assert [args.learning_rate for args in watch.args] == [1e-3, 4e-3]
    assert [str(args.lr_scheduler_type.value) for args in watch.args] == ["constant", "linear"]
    assert watch.texts == [64, 96]
    assert watch.fresh == [True, True]  # each begins with an optimizer that knows nothing
    assert trainer.state.global_step == 96 // 16
    assert [pair.teacher for pair in trainer.pool.members["student"].losses["hidden_states"].pairs] == [2, 3, 4]
    assert "eval_r2" in trainer.evaluate()


@pytest.mark.parametrize("start", ["embeddings", "random"])
def test_what_trains_is_exactly_what_was_named(start, tokenizer, tmp_path):
    teacher = task_teacher(tokenizer, "texts")
    texts = labelled(teacher, 32, 1)
    parts = ["head", "layers:1", "head embedding_projection", "embeddings", "all", "layers"]
    if start == "random":  # with word embeddings of their own, which nothing projects
        parts.remove("head embedding_projection")
    stages = [{"trains": part, "max_steps": 2} for part in parts]
    args = arguments(tmp_path, losses=["labels"], stages=stages, student_init=start, warmup_fraction=0.0)
    config, watch = config_of("deep", teacher), Watch()
    trainer = distill(config, teacher, args, texts, callbacks=[watch])
    names = {key for key, _ in trainer.pool.members["student"].model.named_parameters()}
    heads = {name for name in names if name.startswith("classifier")}
    layers = {name for name in names if ".encoder.layer." in name}
    last = {name for name in layers if ".encoder.layer.2." in name}
    embeddings = {name for name in names if name.startswith("kdnas.embeddings")}
    expected = {
        "head": heads,
        "layers:1": last,
        "head embedding_projection": heads | {"kdnas.embeddings.word_embeddings.projection"},
        "embeddings": embeddings,
        "all": heads | layers | embeddings,
        "layers": layers,
    }

    def comparable(found):  # softmax takes no notice of a bias of keys; of a table the rows train that occur
        return {name.replace(".rows", ".weight") for name in found if not name.endswith("key.bias")}

    for part, changed in zip(parts, watch.changed, strict=True):
        assert comparable(changed) == comparable(expected[part]), part
    # the table that all students share was folded into one of the student's own before it trained
    assert not isinstance(trainer.student.get_input_embeddings(), InheritedWordEmbeddings)


def test_a_later_text_trains_the_words_that_the_first_one_did_not_have(teacher, train_texts, tmp_path):
    texts = {"few": train_texts.select(range(2)), "others": train_texts.select(range(100, 132))}
    stages = [{"dataset": name, "max_steps": 2} for name in texts]
    args = arguments(
        tmp_path, stages=stages, student_init="random", per_device_train_batch_size=2, warmup_fraction=0.0
    )  # fmt: skip
    trainer = distill(config_of("deep", teacher), teacher, args, texts)
    embeddings = trainer.student.get_input_embeddings()
    assert isinstance(embeddings, OccurringWordEmbeddings)
    assert set(embeddings.tokens.tolist()) == {t for row in texts["others"]["input_ids"] for t in row} | {1}


def test_unfreezing_from_the_top_is_a_list_of_stages(teacher, train_texts, tmp_path):
    stages = [{"trains": f"layers:{count}", "max_steps": 1} for count in (1, 2, 3)]
    watch = Watch()
    args = arguments(tmp_path, stages=stages, warmup_fraction=0.0)
    distill(config_of("deep", teacher), teacher, args, train_texts, callbacks=[watch])
    layers = [sorted({name.split("layer.")[1][0] for name in changed}) for changed in watch.changed]
    assert layers == [["2"], ["1", "2"], ["0", "1", "2"]]


def test_a_single_stage_is_a_plain_training(teacher, train_texts, tmp_path):
    config = config_of("deep", teacher)
    plain = DistillationTrainer(config, teacher, arguments(tmp_path / "a"), train_dataset=train_texts)
    plain.train()
    for stages in (None, [{"max_steps": 8}]):
        staged = distill(config, teacher, arguments(tmp_path / "b", stages=stages), train_texts)
        assert_same_weights(weights(staged, "student"), weights(plain, "student"), rtol=0, atol=0)
    assert not (tmp_path / "b" / "stage_1").exists()


class Killed(Exception):
    pass


class Kill(TrainerCallback):
    """Raises at an event of a step in a stage."""

    def __init__(self, stage, event, step):
        self.stage, self.step = stage, step
        setattr(self, event, self.kill)

    def kill(self, args, state, control, **kwargs):
        if args.output_dir.endswith(self.stage) and state.global_step == self.step:
            raise Killed


TWO_STAGES = [
    {"losses": "masked_lm", "trains": "head layers:1", "max_steps": 4, "learning_rate": 1e-2},
    {"losses": "masked_lm:0.5 hidden_states", "max_steps": 4},
]


def two_stages(teacher, folder, texts, callbacks=(), save_strategy="steps"):
    args = arguments(
        folder, stages=TWO_STAGES, save_strategy=save_strategy, save_steps=2, per_device_train_batch_size=8,
        gradient_accumulation_steps=2,
    )  # fmt: skip
    return distill(config_of("deep", teacher), teacher, args, texts, callbacks=callbacks)


@pytest.fixture(scope="module")
def undisturbed(train_texts, tmp_path_factory, tokenizer):
    teacher = Teacher(make_teacher_model(), tokenizer)
    return weights(two_stages(teacher, tmp_path_factory.mktemp("undisturbed"), train_texts), "student")


@pytest.mark.parametrize(
    ("stage", "event", "step"),
    [
        ("stage_1", "on_step_end", 1),  # before the first checkpoint
        ("stage_1", "on_step_end", 3),
        ("stage_1", "on_train_end", 4),  # before it counts as finished
        ("stage_2", "on_train_begin", 0),
        ("stage_2", "on_save", 2),
        ("stage_2", "on_step_end", 4),
    ],
)
def test_a_distillation_that_is_killed_anywhere_ends_with_the_same_weights(
    stage, event, step, undisturbed, teacher, train_texts, tmp_path
):
    with pytest.raises(Killed):
        two_stages(teacher, tmp_path, train_texts, [Kill(stage, event, step)])
    resumed = two_stages(teacher, tmp_path, train_texts)
    assert_same_weights(weights(resumed, "student"), undisturbed, rtol=0, atol=0)
    # started once more, it only loads what is there
    again = two_stages(
        teacher, tmp_path, train_texts, [Kill("stage_1", "on_step_begin", 0), Kill("stage_2", "on_step_begin", 0)]
    )
    assert_same_weights(weights(again, "student"), undisturbed, rtol=0, atol=0)
    assert again.state.global_step == 4


def test_a_finished_stage_is_not_repeated_without_checkpoints_either(undisturbed, teacher, train_texts, tmp_path):
    with pytest.raises(Killed):
        two_stages(teacher, tmp_path, train_texts, [Kill("stage_2", "on_step_end", 1)], save_strategy="no")
    refuse = Kill("stage_1", "on_step_begin", 0)
    resumed = two_stages(teacher, tmp_path, train_texts, [refuse], save_strategy="no")
    assert_same_weights(weights(resumed, "student"), undisturbed, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("second", "message"),
    [
        ({"layer_mapping": "1:9"}, "names teacher layer 9"),
        ({"losses": "labels"}, "load a teacher that was fine-tuned on the task"),
        ({"losses": "logits"}, "needs a teacher with its masked language modeling head"),
        ({"dataset": "fr"}, "stages: dataset='fr' is not one of the texts de"),
    ],
)
def test_what_a_later_stage_cannot_do_is_refused_before_the_first(second, message, teacher, train_texts, tmp_path):
    args = arguments(tmp_path, stages=[{"max_steps": 1}, second])
    with pytest.raises(ValueError, match=message):
        distill(
            config_of("deep", teacher), teacher, args, {"de": train_texts}, callbacks=[Kill("", "on_train_begin", 0)]
        )


def test_a_text_is_named_only_where_there_are_several(teacher, train_texts, tmp_path):
    args = arguments(tmp_path, stages=[{"dataset": "de"}])
    with pytest.raises(ValueError, match="dataset='de' names one of several texts; give train_dataset as a mapping"):
        distill(config_of("deep", teacher), teacher, args, train_texts)


def test_a_given_student_goes_through_all_stages_as_itself(teacher, train_texts, tmp_path):
    student = KDNASModel(KDNASConfig(**SHAPES["small"], vocab_size=teacher.dimensions.vocab_size))
    args = arguments(tmp_path, stages=[{"max_steps": 1, "trains": "layers"}, {"max_steps": 1}])
    assert distill(student, teacher, args, train_texts).student is student
    assert isinstance(student.get_input_embeddings(), torch.nn.Embedding)


def test_a_student_that_diverged_learns_no_more_in_later_stages(teacher, train_texts, heldout_texts, tmp_path):
    configs = {name: config_of(name, teacher) for name in ("small", "deep")}

    class Poison(TrainerCallback):
        def on_step_begin(self, args, state, control, model=None, **kwargs):
            if args.output_dir.endswith("stage_1"):
                for name in self.names:
                    model.members[name].model.embeddings.LayerNorm.weight.detach().fill_(float("nan"))

    poison = Poison()
    poison.names = ["small"]
    args = arguments(tmp_path / "a", stages=[{"max_steps": 2}] * 2)
    trainer = distill(configs, teacher, args, train_texts, heldout_texts, callbacks=[poison])
    assert set(trainer.pool.dropped) == {"small"}
    assert "eval_deep_loss" in trainer.evaluate()
    poison.names = ["small", "deep"]
    args = arguments(tmp_path / "b", stages=[{"max_steps": 2}] * 2)
    trainer = distill(configs, teacher, args, train_texts, heldout_texts, callbacks=[poison])
    assert trainer.args.output_dir.endswith("stage_1")
    assert not trainer.pool.active
