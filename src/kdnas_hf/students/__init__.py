"""What a student is: configuration, models, and how one starts from its teacher's embeddings."""

from .auto import register_auto_classes
from .configuration_kdnas import KDNASConfig
from .embedding_factorisation import FactorisedEmbeddings, factorise_embeddings
from .inheritance import (
    InheritedWordEmbeddings,
    TeacherEmbeddings,
    add_masked_lm_head,
    create_student,
    fold_embeddings,
    inherit_word_embeddings,
    residual_basis,
)
from .layer_copying import collect_layer_samples, copy_layers, read_teacher_layers
from .modeling_kdnas import (
    KDNASForMaskedLM,
    KDNASForQuestionAnswering,
    KDNASForSequenceClassification,
    KDNASForTokenClassification,
    KDNASModel,
    KDNASPreTrainedModel,
)
from .native import copy_tokenizer, from_native, to_native, why_not_native, write_native_checkpoint
from .vocabulary import OccurringWordEmbeddings, train_only
from .vocabulary_trimming import TrimmedVocabulary, UnseenText, trim_vocabulary

register_auto_classes()

__all__ = [
    "FactorisedEmbeddings",
    "InheritedWordEmbeddings",
    "KDNASConfig",
    "KDNASForMaskedLM",
    "KDNASForQuestionAnswering",
    "KDNASForSequenceClassification",
    "KDNASForTokenClassification",
    "KDNASModel",
    "KDNASPreTrainedModel",
    "OccurringWordEmbeddings",
    "TeacherEmbeddings",
    "TrimmedVocabulary",
    "UnseenText",
    "add_masked_lm_head",
    "collect_layer_samples",
    "copy_layers",
    "copy_tokenizer",
    "create_student",
    "factorise_embeddings",
    "fold_embeddings",
    "from_native",
    "inherit_word_embeddings",
    "read_teacher_layers",
    "residual_basis",
    "to_native",
    "train_only",
    "trim_vocabulary",
    "why_not_native",
    "write_native_checkpoint",
]
