"""A tiny teacher, its tokenizer and some text, made on the spot."""

import datasets
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import XLMRobertaConfig, XLMRobertaModel, XLMRobertaTokenizerFast

WORDS = [f"{a}{b}{c}" for a in "bdgklmn" for b in "aeiou" for c in "prst"]


def make_tokenizer() -> XLMRobertaTokenizerFast:
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    pieces = [(token, 0.0) for token in special] + [(f"▁{word}", -5.0) for word in WORDS] + [("<mask>", 0.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=3))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return XLMRobertaTokenizerFast(tokenizer_object=tokenizer, model_max_length=64)


def make_teacher_model(layers: int = 4, hidden: int = 32, vocabulary: int | None = None) -> XLMRobertaModel:
    config = XLMRobertaConfig(
        vocab_size=vocabulary or len(WORDS) + 5,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=66,
        hidden_dropout_prob=0.1,  # a teacher that is not in eval mode gives itself away
        attention_probs_dropout_prob=0.1,
        type_vocab_size=1,
        pad_token_id=1,
        bos_token_id=0,
        eos_token_id=2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = XLMRobertaModel(config, add_pooling_layer=False)
        # initial weights are so small that layers hardly differ; a teacher should have something to teach
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.data.mul_(4)
    return model


def make_texts(count: int, seed: int = 0) -> list[str]:
    generator = torch.Generator().manual_seed(seed)
    texts = []
    for _ in range(count):
        length = int(torch.randint(3, 14, (1,), generator=generator))
        texts.append(" ".join(WORDS[i] for i in torch.randint(len(WORDS), (length,), generator=generator).tolist()))
    return texts


def tokenized(tokenizer, texts: list[str]) -> datasets.Dataset:
    ids = tokenizer(texts, truncation=True, max_length=32)["input_ids"]
    return datasets.Dataset.from_dict({"input_ids": ids, "length": [len(row) for row in ids]})
