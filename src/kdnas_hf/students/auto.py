"""Makes students known to transformers' Auto classes, and has their code saved beside their weights."""

from __future__ import annotations

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForQuestionAnswering,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
)

from .configuration_kdnas import KDNASConfig
from .modeling_kdnas import (
    KDNASForMaskedLM,
    KDNASForQuestionAnswering,
    KDNASForSequenceClassification,
    KDNASForTokenClassification,
    KDNASModel,
)

MODELS = {
    AutoModel: KDNASModel,
    AutoModelForMaskedLM: KDNASForMaskedLM,
    AutoModelForSequenceClassification: KDNASForSequenceClassification,
    AutoModelForTokenClassification: KDNASForTokenClassification,
    AutoModelForQuestionAnswering: KDNASForQuestionAnswering,
}


def register_auto_classes() -> None:
    """Register configuration and models.

    Two registrations that transformers keeps apart: with `AutoX.register` the Auto classes find the classes of this
    package without `trust_remote_code`; with `register_for_auto_class` every `save_pretrained`, a `Trainer`'s too,
    writes the code into the checkpoint, so that it also loads where this package is not installed.
    """
    AutoConfig.register(KDNASConfig.model_type, KDNASConfig, exist_ok=True)
    KDNASConfig.register_for_auto_class()
    for auto_class, model_class in MODELS.items():
        auto_class.register(KDNASConfig, model_class, exist_ok=True)
        model_class.register_for_auto_class(auto_class.__name__)
