"""`DistillationTrainer`: learning, evaluation, checkpoints, and what is refused."""

import copy
import math

import datasets
import pytest
import torch
from transformers import AutoModel, AutoTokenizer, TrainerCallback

from kdnas_hf import DistillationTrainer, DistillationTrainingArguments, KDNASConfig, KDNASModel, StudentPool, Teacher

SHAPES = {
    "small": {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16},
    "deep": {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 24},
    "wide": {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 32},
    "mixed": {
        "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": [2, 4], "intermediate_size": [16, 32],
        "hidden_act": ["relu", "gelu"], "embedding_size": 8,
    },
}  # fmt: skip


def config_of(name, teacher):
    return KDNASConfig(
        **SHAPES[name], vocab_size=teacher.dimensions.vocab_size, max_position_embeddings=66, hidden_dropout_prob=0.0
    )


def arguments(folder, **kwargs):
    defaults = {
        "per_device_train_batch_size": 16,
        "max_steps": 8,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": True,
        "statistics_sentences": 64,
        "learning_rate": 5e-3,
    }
    return DistillationTrainingArguments(output_dir=str(folder), **defaults | kwargs)


class Losses(TrainerCallback):
    """Keeps what is logged."""

    def __init__(self):
        self.values = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "loss" in logs:
            self.values.append(logs["loss"])


def make(
    teacher,
    folder,
    train,
    heldout=None,
    students=("deep",),
    callbacks=None,
    statistics=None,
    **kwargs,
):
    args = arguments(folder, **kwargs)
    pool = StudentPool.create({name: config_of(name, teacher) for name in students}, teacher, args)
    return DistillationTrainer(
        model=pool,
        teacher=teacher,
        args=args,
        train_dataset=train,
        eval_dataset=heldout,
        callbacks=callbacks,
        statistics=statistics,
    )


def weights(trainer, name):
    return {key: value.clone() for key, value in trainer.pool.members[name].named_parameters() if value.requires_grad}


def assert_same_weights(first, second, **tolerance):
    assert first.keys() == second.keys()
    for key, value in first.items():
        torch.testing.assert_close(value, second[key], **tolerance, msg=lambda m, key=key: f"{key}: {m}")


def test_a_student_learns_and_r2_says_so(teacher, train_texts, heldout_texts, tmp_path):
    trainer = make(teacher, tmp_path, train_texts, heldout_texts, max_steps=150)
    before = trainer.evaluate()
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_loss"] < before["eval_loss"]
    assert after["eval_r2"] > max(before["eval_r2"], 0.02)
    assert {"eval_r2_layer_1", "eval_r2_layer_2", "eval_r2_layer_3"} <= set(after)
    assert after["eval_r2_layer_3"] == after["eval_r2"]


@pytest.mark.parametrize("init", ["embeddings", "random", "auto"])
def test_a_student_with_smaller_embeddings_and_layers_that_differ_learns_and_loads(
    init, teacher, train_texts, heldout_texts, tmp_path
):
    trainer = make(teacher, tmp_path, train_texts, heldout_texts, students=("mixed",), max_steps=60, student_init=init)
    table = teacher.embeddings.table.clone()
    before = weights(trainer, "mixed")
    start = trainer.evaluate()["eval_r2"]
    trainer.train()
    assert trainer.evaluate()["eval_r2"] > start
    assert torch.equal(teacher.embeddings.table, table)
    after = weights(trainer, "mixed")
    embeddings = [name for name in after if "embeddings.projection" in name or "word_embeddings" in name]
    assert len(embeddings) == 2  # to the word embeddings' size, or a table of that size, and to the hidden size
    assert not any(torch.equal(before[name], after[name]) for name in embeddings)
    trainer.save_model(str(tmp_path / "student"))
    loaded = AutoModel.from_pretrained(tmp_path / "student").eval()
    assert loaded.get_input_embeddings().weight.shape == (teacher.dimensions.vocab_size, 8)
    ids = torch.tensor([heldout_texts[0]["input_ids"]])
    torch.testing.assert_close(loaded(ids)[0], trainer.pool.students["mixed"].eval()(ids)[0], rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_evaluation_is_the_loss_and_r2_of_all_heldout_tokens(teacher, train_texts, heldout_texts, tmp_path):
    trainer = make(teacher, tmp_path, train_texts, heldout_texts, per_device_eval_batch_size=7, layer_mapping="2:1 3:4")
    metrics = trainer.evaluate()
    collated = teacher.tokenizer.pad({"input_ids": heldout_texts["input_ids"][:]}, return_tensors="pt")
    mask = collated["attention_mask"].bool()
    states = teacher.hidden_states(collated["input_ids"], collated["attention_mask"], [1, 4])
    member = trainer.pool.members["deep"]
    hidden = member.student(**collated, output_hidden_states=True).hidden_states
    losses, scores = [], []
    for layer, teacher_layer in ((2, 1), (3, 4)):
        target = (states[teacher_layer][mask] - trainer.statistics.mean[teacher_layer]) / trainer.statistics.std[
            teacher_layer
        ]
        error = (member.losses["hidden_states"].projections(layer, hidden[layer][mask])[0] - target).square()
        losses.append(error.mean())
        scores.append((1 - error.sum(0) / (target - target.mean(0)).square().sum(0)).mean())
    assert metrics["eval_loss"] == metrics["eval_hidden_states_loss"] == pytest.approx(float(sum(losses) / 2), rel=1e-4)
    assert metrics["eval_last_layer_loss"] == pytest.approx(float(losses[1]), rel=1e-4)
    assert metrics["eval_r2"] == 1 - metrics["eval_error"] == pytest.approx(float(scores[1]), abs=1e-4)


def test_accumulated_micro_batches_equal_one_big_batch(teacher, train_texts, tmp_path):
    runs = {}
    for name, size, accumulation in (("big", 16, 1), ("accumulated", 4, 4)):
        losses = Losses()
        trainer = make(
            teacher, tmp_path / name, train_texts, callbacks=[losses], logging_steps=1,
            per_device_train_batch_size=size, gradient_accumulation_steps=accumulation,
        )  # fmt: skip
        trainer.train()
        runs[name] = (losses.values, weights(trainer, "deep"), trainer.trained_tokens)
    assert runs["big"][0] == pytest.approx(runs["accumulated"][0], rel=1e-4)
    assert len(runs["big"][0]) == 8
    assert_same_weights(runs["big"][1], runs["accumulated"][1], atol=2e-4, rtol=1e-3)
    assert runs["big"][2] == runs["accumulated"][2] > 0


def test_gradients_are_clipped_for_each_student_alone(teacher, train_texts, tmp_path):
    norms = {}

    class Norms(TrainerCallback):
        def on_pre_optimizer_step(self, args, state, control, model=None, **kwargs):
            for name, member in model.items():
                squares = [p.grad.square().sum() for p in member.parameters() if p.grad is not None]
                norms.setdefault(name, []).append(float(torch.stack(squares).sum().sqrt()))

    make(teacher, tmp_path, train_texts, students=SHAPES, max_grad_norm=0.05, max_steps=2, callbacks=[Norms()]).train()
    assert set(norms) == set(SHAPES)
    for values in norms.values():
        assert values == pytest.approx([0.05, 0.05], rel=1e-3)


def test_training_stops_when_every_student_is_dropped(teacher, train_texts, tmp_path):
    trainer = make(teacher, tmp_path, train_texts, learning_rate=float("inf"), max_steps=20)
    trainer.train()
    assert trainer.state.global_step < 20
    assert trainer.pool.active == {}


@pytest.mark.parametrize("students", [["deep"], ["small", "wide"]])
def test_resuming_from_a_checkpoint_changes_nothing(teacher, train_texts, tmp_path, students):
    whole = make(teacher, tmp_path / "whole", train_texts, None, students, max_steps=24)
    whole.train()

    class Stop(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            control.should_training_stop = state.global_step == 20  # in the second epoch

    saving = {"save_strategy": "steps", "save_steps": 10, "max_steps": 24}
    make(teacher, tmp_path / "cut", train_texts, None, students, callbacks=[Stop()], **saving).train()
    checkpoint = tmp_path / "cut" / "checkpoint-20"
    members = {path.name for path in (checkpoint / "members").iterdir()}
    assert members == {f"{name}{ending}" for name in students for ending in (".safetensors", ".optimizer.pt")}
    assert (checkpoint / "distillation.json").is_file()
    resumed = make(teacher, tmp_path / "cut", train_texts, None, students, **saving)
    resumed.train(resume_from_checkpoint=str(checkpoint))
    for name in students:
        assert_same_weights(weights(whole, name), weights(resumed, name), atol=0, rtol=0)
    assert resumed.trained_tokens == whole.trained_tokens


def test_a_checkpoint_of_another_pool_is_refused(teacher, train_texts, tmp_path):
    make(teacher, tmp_path, train_texts, save_strategy="steps", save_steps=8).train()
    with pytest.raises(ValueError, match=r"written by another pool of students; it has no wide\.safetensors"):
        make(teacher, tmp_path, train_texts, students=["wide"]).train(str(tmp_path / "checkpoint-8"))
    with pytest.raises(ValueError, match=r"another pool of students; deep differs in losses\.cosine"):
        make(teacher, tmp_path, train_texts, losses=["cosine"]).train(str(tmp_path / "checkpoint-8"))
    with pytest.raises(ValueError, match=r"holds no distillation\.json: it is not a checkpoint of a distillation"):
        make(teacher, tmp_path, train_texts).train(str(tmp_path))


def test_the_saved_student_is_the_one_in_memory(teacher, train_texts, tmp_path):
    trainer = make(teacher, tmp_path, train_texts)
    trainer.train()
    trainer.save_model(tmp_path / "student")
    inputs = teacher.tokenizer(["bap dat", "nus lit kop"], padding=True, return_tensors="pt")
    loaded = AutoModel.from_pretrained(tmp_path / "student", dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "student")
    trainer.student.eval()
    expected = trainer.student(**inputs).last_hidden_state
    torch.testing.assert_close(loaded(**inputs).last_hidden_state, expected, atol=1e-5, rtol=1e-4)
    assert isinstance(loaded, KDNASModel)
    assert tokenizer(["bap dat"])["input_ids"] == teacher.tokenizer(["bap dat"])["input_ids"]
    assert not any("projections" in key for key in loaded.state_dict())


def test_the_teacher_and_its_table_stay_as_they_were(teacher, train_texts, tmp_path):
    before, attention = copy.deepcopy(teacher.model.state_dict()), teacher.model.config._attn_implementation
    made = make(
        teacher,
        tmp_path,
        train_texts,
        students=SHAPES,
        teacher_dtype="bfloat16",
        losses=["hidden_states attention_maps"],
    )
    made.train()
    assert teacher.model.config._attn_implementation == attention
    for key, value in teacher.model.state_dict().items():
        assert torch.equal(value, before[key]), key
        assert value.dtype == before[key].dtype


def test_students_share_the_teachers_table(teacher, tmp_path):
    args = arguments(tmp_path)
    pool = StudentPool.create({name: config_of(name, teacher) for name in SHAPES}, teacher, args)
    tables = {id(s.get_input_embeddings().table) for s in pool.students.values()}
    assert tables == {id(teacher.embeddings.table)}


def test_published_recipe_trains(teacher, train_texts, heldout_texts, tmp_path):
    trainer = make(
        teacher, tmp_path, train_texts, heldout_texts, layer_mapping="uniform+last", projection="shared",
        projection_init="random", hidden_state_normalization="none", student_init="random", max_steps=60,
    )  # fmt: skip
    assert trainer.statistics is None
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < before
    shared = trainer.pool.members["deep"].losses["hidden_states"].projections.maps["shared"]
    assert shared.out_features == 2 * 32


def test_plain_use_with_a_configuration_and_a_bare_model(teacher, tokenizer, train_texts, tmp_path):
    trainer = DistillationTrainer(
        model=config_of("small", teacher),
        teacher=teacher.model,
        args=arguments(tmp_path, max_steps=2),
        train_dataset=train_texts.remove_columns("length"),
        processing_class=tokenizer,
    )
    trainer.train()
    assert isinstance(trainer.student, KDNASModel)


def test_a_student_given_as_a_model_is_trained_as_it_is(teacher, train_texts, tmp_path):
    student = KDNASModel(config_of("small", teacher))
    trainer = DistillationTrainer(
        model=student, teacher=teacher, args=arguments(tmp_path, max_steps=2), train_dataset=train_texts
    )
    before = student.embeddings.word_embeddings.weight.detach().clone()
    trainer.train()
    assert trainer.student is student
    assert not torch.equal(before, student.embeddings.word_embeddings.weight)


def test_bf16_comes_close_to_float32(teacher, tokenizer, train_texts, heldout_texts, tmp_path):
    from tiny_teacher import make_teacher_model

    exact = make(teacher, tmp_path / "a", train_texts, heldout_texts, max_steps=30)
    exact.train()
    second = Teacher(make_teacher_model(), tokenizer)
    rounded = make(second, tmp_path / "b", train_texts, heldout_texts, max_steps=30, bf16=True)
    rounded.train()
    assert rounded.evaluate()["eval_loss"] == pytest.approx(exact.evaluate()["eval_loss"], rel=0.05)


def test_little_is_padded(teacher, train_texts, tmp_path):
    trainer = make(teacher, tmp_path, train_texts)
    real = padded = 0
    for inputs in trainer.get_train_dataloader():
        real += int(inputs["attention_mask"].sum())
        padded += inputs["attention_mask"].numel()
    assert real / padded > 0.9
    assert real == sum(train_texts["length"])


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"layer_mapping": "unifrm"}, "did you mean 'uniform'"),
        ({"projection": "both"}, "projection='both' is unknown. Choose from per_layer, shared"),
        ({"hidden_state_normalization": "l2"}, "Choose from standardize, none"),
        ({"student_init": "teacher"}, "Choose from auto, layers, embeddings, random"),
        ({"warmup_fraction": 1.0}, "warmup_fraction=1.0 is not in"),
        ({"statistics_sentences": 0}, "statistics_sentences=0 must be at least 1"),
        ({"global_train_batch_size": 7, "gradient_accumulation_steps": 2}, "not divisible"),
    ],
)
def test_bad_arguments_are_refused(tmp_path, values, message):
    with pytest.raises(ValueError, match=message):
        arguments(tmp_path, **values)


def test_global_batch_size_is_divided(tmp_path):
    args = arguments(tmp_path, global_train_batch_size=32, gradient_accumulation_steps=4)
    assert args.per_device_train_batch_size == 8


def test_warmup_is_a_fraction_unless_steps_are_given(tmp_path):
    assert arguments(tmp_path, warmup_fraction=0.1).get_warmup_steps(95) == math.ceil(9.5)
    assert arguments(tmp_path, warmup_steps=3).get_warmup_steps(95) == 3


def test_misfits_are_refused(teacher, tokenizer, train_texts, tmp_path):
    with pytest.raises(ValueError, match="teacher layer 9"):
        make(teacher, tmp_path, train_texts, layer_mapping="1:9")
    with pytest.raises(ValueError, match="needs processing_class"):
        DistillationTrainer(config_of("small", teacher), teacher.model, arguments(tmp_path), train_texts)
    with pytest.raises(ValueError, match="model is a XLMRobertaModel; distillation takes a KDNASConfig, a KDNASModel"):
        DistillationTrainer(teacher.model, teacher, arguments(tmp_path), train_texts)
    with pytest.raises(ValueError, match="at least one student"):
        StudentPool({})
    with pytest.raises(ValueError, match="pass it, or statistics"):
        DistillationTrainer(config_of("small", teacher), teacher, arguments(tmp_path))
    with pytest.raises(ValueError, match="a trainer trains one of them; call kdnas_hf.distillation.distill"):
        make(teacher, tmp_path, train_texts, stages=[{"max_steps": 1}])
    pool = make(teacher, tmp_path, train_texts, students=SHAPES)
    with pytest.raises(ValueError, match="holds 4 students"):
        _ = pool.student


def test_an_empty_sample_has_no_statistics(teacher, tmp_path):
    empty = datasets.Dataset.from_dict({"input_ids": []})
    with pytest.raises(ValueError, match="at least two tokens"):
        DistillationTrainer(config_of("small", teacher), teacher, arguments(tmp_path), empty)


def test_students_that_start_at_random_train_only_the_rows_that_occur(teacher, train_texts, tmp_path, monkeypatch):
    texts = train_texts.select(range(6))
    few = make(teacher, tmp_path, texts, student_init="random", per_device_train_batch_size=2)
    occurring = {token for row in texts for token in row["input_ids"]} | {teacher.tokenizer.pad_token_id}
    assert len(few.student.get_input_embeddings().rows) == len(occurring) < teacher.dimensions.vocab_size
    few.train()
    monkeypatch.setattr(StudentPool, "train_only_occurring", lambda self, texts: None)
    whole = make(teacher, tmp_path, texts, student_init="random", per_device_train_batch_size=2)
    whole.train()
    torch.testing.assert_close(few.student.get_input_embeddings().weight, whole.student.get_input_embeddings().weight)


def test_rows_that_do_not_occur_train_where_weights_decay(teacher, train_texts, tmp_path):
    trainer = make(teacher, tmp_path, train_texts.select(range(6)), student_init="random", weight_decay=0.1)
    assert isinstance(trainer.student.get_input_embeddings(), torch.nn.Embedding)


@pytest.mark.parametrize("bf16", [False, True])
def test_students_multiply_in_bf16_where_it_is_asked_for_and_are_float32(bf16, teacher, train_texts, tmp_path):
    trainer = make(teacher, tmp_path, train_texts, train_texts, students=("deep", "small"), bf16=bf16, max_steps=1)
    dtypes = {name: set() for name in trainer.pool.members}
    for name, member in trainer.pool.members.items():
        for module in member.student.encoder.modules():
            if isinstance(module, torch.nn.Linear):
                module.register_forward_hook(lambda *call, name=name: dtypes[name].add(call[-1].dtype))
    trainer.train()
    trainer.evaluate()
    assert all(found == {torch.bfloat16 if bf16 else torch.float32} for found in dtypes.values())
    assert {p.dtype for p in trainer.pool.parameters()} == {torch.float32}
