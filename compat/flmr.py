"""The names that ``from flmr import ...`` gives, with the original's arguments and defaults (docs/FLMR.md)."""

from compat.flmr_collection import (
    Ranking,
    Searcher,
    create_searcher,
    index_custom_collection,
    search_custom_collection,
)
from compat.flmr_config import FLMRConfig, FLMRTextConfig, FLMRVisionConfig
from compat.flmr_model import (
    FLMRContextEncoderOutput,
    FLMRModelForRetrieval,
    FLMRModelForRetrievalOutput,
    FLMRQueryEncoderOutput,
)
from compat.flmr_tokenizers import FLMRContextEncoderTokenizer, FLMRQueryEncoderTokenizer

__all__ = [
    "FLMRConfig",
    "FLMRContextEncoderOutput",
    "FLMRContextEncoderTokenizer",
    "FLMRModelForRetrieval",
    "FLMRModelForRetrievalOutput",
    "FLMRQueryEncoderOutput",
    "FLMRQueryEncoderTokenizer",
    "FLMRTextConfig",
    "FLMRVisionConfig",
    "Ranking",
    "Searcher",
    "create_searcher",
    "index_custom_collection",
    "search_custom_collection",
]
