"""What a student is: configuration, models, and how one starts from its teacher's embeddings and layers."""

from .architecture import Architecture, StudentArguments
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
from .layer_copying import COPIED_MODEL_TYPES, check_copyable, copy_layers
from .modeling_kdnas import (
    KDNASForMaskedLM,
    KDNASForQuestionAnswering,
    KDNASForSequenceClassification,
    KDNASForTokenClassification,
    KDNASModel,
    KDNASPreTrainedModel,
)
from .native import copy_tokenizer, from_native, to_native, why_not_native, write_native_checkpoint
from .parts import PARTS, train_parts
from .sentence_encoder import SentenceEncoder
from .starts import Start, basis_of
from .vocabulary import OccurringWordEmbeddings, train_only
from .vocabulary_trimming import TrimmedVocabulary, UnseenText, trim_vocabulary

register_auto_classes()

__all__ = [
    "COPIED_MODEL_TYPES",
    "PARTS",
    "Architecture",
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
    "SentenceEncoder",
    "Start",
    "StudentArguments",
    "TeacherEmbeddings",
    "TrimmedVocabulary",
    "UnseenText",
    "add_masked_lm_head",
    "basis_of",
    "check_copyable",
    "copy_layers",
    "copy_tokenizer",
    "create_student",
    "factorise_embeddings",
    "fold_embeddings",
    "from_native",
    "inherit_word_embeddings",
    "residual_basis",
    "to_native",
    "train_only",
    "train_parts",
    "trim_vocabulary",
    "why_not_native",
    "write_native_checkpoint",
]
