"""How to use a student, as its card shows it."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PretrainedConfig

from ..export.backends import BACKENDS, EXTRAS
from ..utils.sentence_head import SentenceHead

AUTO_CLASSES = {
    "ForMaskedLM": "AutoModelForMaskedLM",
    "ForSequenceClassification": "AutoModelForSequenceClassification",
    "ForTokenClassification": "AutoModelForTokenClassification",
    "ForQuestionAnswering": "AutoModelForQuestionAnswering",
}
PIPELINES = {
    "AutoModel": ("feature-extraction", "Guten Morgen"),
    "AutoModelForMaskedLM": ("fill-mask", "Guten <mask>"),
    "AutoModelForSequenceClassification": ("text-classification", "Guten Morgen"),
    "AutoModelForTokenClassification": ("token-classification", "Guten Morgen, Berlin"),
}


def usage(
    config: PretrainedConfig,
    repo_id: str,
    native: bool,
    artefacts: Sequence[str],
    sentence_head: SentenceHead | None = None,
) -> str:
    """Markdown with code that loads and runs a student.

    Args:
        config: The student's configuration.
        repo_id: Where it is published.
        native: Whether it is a stock checkpoint, which needs no code of ours.
        artefacts: Exported models in the repository, by file name.
        sentence_head: What makes its sentence vectors, if it is a student of sentences.
    """
    (architecture, *_) = config.architectures or [""]
    auto = next((name for head, name in AUTO_CLASSES.items() if architecture.endswith(head)), "AutoModel")
    trust = "" if native else ", trust_remote_code=True"
    outputs = "last_hidden_state" if auto == "AutoModel" else "start_logits" if "Question" in auto else "logits"
    call = 'tokenizer("Wo ist sie?", "Sie ist in Bonn.", return_tensors="pt")' if "Question" in auto else (
        'tokenizer("Guten Morgen", return_tensors="pt")'
    )  # fmt: skip
    blocks = [] if sentence_head is None else [_sentence_vectors(repo_id, trust, sentence_head)]
    blocks.append(
        f"""```python
from transformers import {auto}, AutoTokenizer

model = {auto}.from_pretrained("{repo_id}"{trust})
tokenizer = AutoTokenizer.from_pretrained("{repo_id}")
outputs = model(**{call}).{outputs}
```"""
    )
    if auto in PIPELINES:
        task, text = PIPELINES[auto]
        blocks.append(
            f"""```python
from transformers import pipeline

run = pipeline("{task}", model="{repo_id}"{trust})
run("{text}")
```"""
        )
    if native:
        blocks.append(
            "It is an ordinary XLM-RoBERTa checkpoint: whatever loads those loads it, and no code comes with it."
            + (
                " `AutoModel` adds a pooler, which is new and not trained; use the hidden states."
                if auto == "AutoModel"
                else ""
            )
        )
    else:
        blocks.append("With `kdnas_hf` installed and imported, `trust_remote_code` is not needed.")
    if auto == "AutoModel":
        blocks.append(
            "Fine-tune it with `AutoModelForSequenceClassification`, `AutoModelForTokenClassification` or "
            "`AutoModelForQuestionAnswering` and a plain `Trainer`."
        )
    if artefacts:
        blocks.append(_exported(repo_id, artefacts, outputs, call))
    else:
        blocks.append("ONNX and OpenVINO: no exported model is in this repository.")
    return "\n\n".join(blocks)


def _sentence_vectors(repo_id: str, trust: str, head: SentenceHead) -> str:
    """How to make sentence vectors, with the prompts that the student knows."""
    prompted = next((name for name in head.prompts if name != head.default_prompt), None)
    other = "" if prompted is None else f'\nvectors = model.encode(["Guten Morgen"], prompt_name="{prompted}")'
    listed = ", ".join(f"`{name}`: {text!r}" for name, text in head.prompts.items())
    default = f"; without `prompt_name` the prompt is `{head.default_prompt}`" if head.default_prompt else ""
    known = f"\n\nPrompts: {listed}{default}." if listed else ""
    return f"""```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{repo_id}"{trust})
vectors = model.encode(["Guten Morgen", "Good morning"]){other}
```{known}"""


def _exported(repo_id: str, artefacts: Sequence[str], outputs: str, call: str) -> str:
    """How to run what was exported."""
    names = [backend.name for backend in BACKENDS.values() if backend.file in artefacts]
    listed = ", ".join(f"`{name}`" for name in artefacts)
    opened = (
        f"ONNX and OpenVINO: this repository holds {listed}. ONNX Runtime and OpenVINO open them as they are; the "
        "inputs are `input_ids` and `attention_mask`, int64 `(batch_size, sequence_length)`."
    )
    if not names:
        return opened
    backend = names[-1]
    others = "\n\nThe others by " + ", ".join(f'`backend="{name}"`' for name in names[:-1]) + "." if names[1:] else ""
    return f"""{opened} In one line, with `pip install 'kdnas-hf[{EXTRAS[BACKENDS[backend].runtime]}]'`:

```python
from kdnas_hf.export import ExportedModel

model = ExportedModel.from_pretrained("{repo_id}", backend="{backend}")
outputs = model(**{call}).{outputs}
```{others}"""
