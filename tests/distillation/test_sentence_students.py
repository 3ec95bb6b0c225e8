"""Students of a teacher of sentence vectors: what they learn, and that what is saved makes the same vectors."""

import numpy as np
import pytest
import torch
from torch import nn

from kdnas_hf import DistillationTrainer, DistillationTrainingArguments, KDNASConfig, Teacher
from kdnas_hf.distillation.stored_targets import StoredTargets, store_targets
from kdnas_hf.students import SentenceEncoder
from kdnas_hf.utils.sentence_head import Normalize, SentenceHead
from tiny_teacher import make_teacher_model, make_texts, tokenized

TEXTS = 128
PROMPTS = {"query": "bap "}


@pytest.fixture
def teacher(tokenizer):
    return make_teacher(tokenizer, SentenceHead("mean", [Normalize()], PROMPTS, "query", max_length=32))


def make_teacher(tokenizer, head):
    return Teacher(make_teacher_model(), tokenizer, name="tiny teacher", sentence_head=head)


def distil(teacher, folder, hidden_size=16, train=None, **arguments):
    args = DistillationTrainingArguments(
        **{
            "output_dir": str(folder),
            "max_steps": 24,
            "global_train_batch_size": 16,
            "learning_rate": 5e-3,
            "save_strategy": "no",
            "report_to": "none",
            "use_cpu": True,
            "disable_tqdm": True,
        }
        | arguments
    )
    config = KDNASConfig(
        vocab_size=len(teacher.tokenizer),
        hidden_size=hidden_size,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=32,
        max_position_embeddings=66,
    )
    texts = tokenized(teacher.tokenizer, make_texts(TEXTS))
    heldout = tokenized(teacher.tokenizer, make_texts(40, seed=1))
    trainer = DistillationTrainer(config, teacher, args, texts if train is None else train, heldout)
    return trainer, texts


def agreement(encoder, teacher, texts):
    """Mean cosine of an encoder's vectors with the teacher's own."""
    whole = SentenceEncoder(teacher.model, teacher.tokenizer, teacher.sentence_head)
    ours, theirs = (torch.from_numpy(one.encode(texts)) for one in (encoder, whole))
    return nn.functional.cosine_similarity(ours, theirs).mean().item()


@pytest.mark.parametrize("losses", ["sentence_vectors", "hidden_states", "hidden_states sentence_vectors:2"])
def test_what_is_saved_makes_the_vectors_that_were_measured(teacher, tmp_path, losses):
    trainer, _ = distil(teacher, tmp_path / "run", losses=losses.split())
    trainer.train()
    metrics = trainer.evaluate()
    trainer.save_model(str(tmp_path / "student"))
    encoder = SentenceEncoder.from_pretrained(tmp_path / "student")
    assert encoder.prompts == PROMPTS
    texts = make_texts(40, seed=1)
    if "sentence_vectors" in losses:
        # held-out texts were read without a prompt
        encoder.head.default_prompt = teacher.sentence_head.default_prompt = None
        assert agreement(encoder, teacher, texts) == pytest.approx(metrics["eval_cosine"], abs=1e-4)
    assert agreement(encoder, teacher, texts) > 0.5


def test_a_student_encodes_in_the_middle_of_its_training(teacher, tmp_path):
    trainer, _ = distil(teacher, tmp_path / "run", max_steps=2)
    trainer.train()
    trainer.pool.train()
    texts = make_texts(6)
    vectors = trainer.sentence_encoder().encode(texts)
    assert trainer.student.training
    trainer.save_model(str(tmp_path / "student"))
    np.testing.assert_allclose(SentenceEncoder.from_pretrained(tmp_path / "student").encode(texts), vectors, atol=1e-5)


def test_a_student_without_vectors_is_no_encoder(tokenizer, tmp_path):
    trainer, _ = distil(make_teacher(tokenizer, None), tmp_path / "run", max_steps=1)
    with pytest.raises(ValueError, match="student makes no sentence vectors"):
        trainer.sentence_encoder()


def test_vectors_are_learned(teacher, tmp_path):
    trainer, _ = distil(teacher, tmp_path, losses=["sentence_vectors"], max_steps=150)
    before = trainer.evaluate()["eval_vector_r2"]
    trainer.train()
    after = trainer.evaluate()
    assert after["eval_vector_r2"] > before + 0.1
    assert after["eval_error"] == pytest.approx(1 - after["eval_vector_r2"])


@pytest.mark.parametrize("pooling", ["mean", "cls", "lasttoken", "weightedmean"])
@pytest.mark.parametrize("normalization", ["standardize", "none"])
def test_the_map_of_states_is_folded_exactly(tokenizer, tmp_path, pooling, normalization):
    linear = nn.Linear(32, 6)
    teacher = make_teacher(tokenizer, SentenceHead(pooling, [linear, nn.Tanh(), Normalize()]))
    trainer, texts = distil(teacher, tmp_path / "run", hidden_state_normalization=normalization, max_steps=2)
    trainer.train()
    trainer.save_model(str(tmp_path / "student"))
    encoder = SentenceEncoder.from_pretrained(tmp_path / "student")
    member = trainer.pool.members["student"].eval()
    (row,) = texts.select([3])
    ids = torch.tensor([row["input_ids"]])
    with torch.no_grad():
        states = member.student(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        (projected,) = member.losses["hidden_states"].projections(2, states[0])
        if trainer.statistics is not None:
            projected = projected * trainer.statistics.std[4] + trainer.statistics.mean[4]
        expected = teacher.sentence_head(projected[None], torch.ones_like(ids))
        found = encoder.head(states, torch.ones_like(ids))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


def test_pooling_that_does_not_commute_with_the_map_saves_no_head(tokenizer, tmp_path):
    teacher = make_teacher(tokenizer, SentenceHead("max"))
    trainer, _ = distil(teacher, tmp_path / "run", max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "student"))
    assert SentenceHead.load(tmp_path / "student") is None


def test_a_student_of_a_teacher_of_states_gets_no_head(tokenizer, tmp_path):
    trainer, _ = distil(make_teacher(tokenizer, None), tmp_path / "run", max_steps=1)
    trainer.train()
    trainer.save_model(str(tmp_path / "student"))
    assert not (tmp_path / "student" / "modules.json").exists()


@pytest.mark.parametrize("losses", [["sentence_vectors"], ["hidden_states", "sentence_vectors"]])
def test_stored_vectors_are_those_that_are_computed(teacher, tmp_path, losses):
    trainer, texts = distil(teacher, tmp_path / "a", losses=losses)
    stored = store_targets(
        teacher, texts, trainer.pool.required, tmp_path / "targets", dtype=torch.float32, batch_size=16
    )
    trainer.train()
    again, _ = distil(teacher, tmp_path / "b", train=stored, losses=losses)
    again.train()
    for ours, theirs in zip(trainer.student.parameters(), again.student.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-3)
    # a vector for each text, and not for each of its tokens
    size = sum(file.stat().st_size for file in (tmp_path / "targets").rglob("*.arrow"))
    tokens = sum(texts["length"]) * (32 * 2 * 4 if "hidden_states" in losses else 0)
    assert size < 1.2 * (tokens + TEXTS * 32 * 4) + 4096


def test_vectors_of_another_head_are_not_read(teacher, tokenizer, tmp_path):
    texts = tokenized(tokenizer, make_texts(8))
    trainer, _ = distil(teacher, tmp_path, losses=["sentence_vectors"], max_steps=1)
    paths = set()
    for head in (teacher.sentence_head, SentenceHead("mean"), SentenceHead("cls")):
        teacher.sentence_head = head
        stored = store_targets(teacher, texts, trainer.pool.required, tmp_path / "t", dtype=torch.float32, batch_size=4)
        assert isinstance(stored, StoredTargets)
        paths.add(stored.path)
    assert len(paths) == 3


def test_accumulated_batches_are_one_large_batch(teacher, tmp_path):
    weights = []
    for parts in (1, 4):
        args = {"max_steps": 3, "gradient_accumulation_steps": parts, "group_texts_by_length": False}
        trainer, _ = distil(teacher, tmp_path / str(parts), losses=["sentence_vectors"], **args)
        for module in trainer.pool.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        trainer.train()
        weights.append(np.concatenate([p.detach().flatten().numpy() for p in trainer.student.parameters()]))
    np.testing.assert_allclose(*weights, atol=2e-4)


def test_loading_a_teacher_brings_its_head(teacher, tmp_path):
    from kdnas_hf import load_teacher

    teacher.model.save_pretrained(tmp_path)
    teacher.tokenizer.save_pretrained(tmp_path)
    assert load_teacher(str(tmp_path)).sentence_head is None
    teacher.sentence_head.save(tmp_path)
    assert load_teacher(str(tmp_path)).sentence_head.digest() == teacher.sentence_head.digest()


def test_sentence_transformers_loads_the_student(teacher, tmp_path):
    library = pytest.importorskip("sentence_transformers")
    trainer, _ = distil(teacher, tmp_path / "run", max_steps=2)
    trainer.train()
    trainer.save_model(str(tmp_path / "student"))
    theirs = library.SentenceTransformer(str(tmp_path / "student"), trust_remote_code=True)
    texts = make_texts(5)
    ours = SentenceEncoder.from_pretrained(tmp_path / "student")
    np.testing.assert_allclose(ours.encode(texts), theirs.encode(texts), atol=1e-5)
    np.testing.assert_allclose(ours.encode(texts, "query"), theirs.encode(texts, prompt_name="query"), atol=1e-5)
