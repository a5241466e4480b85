"""What a model's generation settings do to logits before the highest one is taken.

Must not know caches or cells.
"""

from __future__ import annotations

from transformers import (
    LogitsProcessorList,
    NoBadWordsLogitsProcessor,
    PreTrainedModel,
    RepetitionPenaltyLogitsProcessor,
)

# What else in a generation_config changes greedy answers, with the values that do not.
_PROCESSORS = {
    "no_repeat_ngram_size": (None, 0),
    "suppress_tokens": (None, []),
    "begin_suppress_tokens": (None, []),
    "forced_bos_token_id": (None,),
    "forced_eos_token_id": (None,),
    "sequence_bias": (None, {}),
    "min_length": (None, 0),
    "min_new_tokens": (None, 0),
}


def logits_processors(model: PreTrainedModel) -> LogitsProcessorList:
    """The processors of a greedy answer. ValueError, one sentence, for settings without one."""
    settings = model.generation_config
    for name, neutral in _PROCESSORS.items():
        value = getattr(settings, name, None)
        if value not in neutral:
            raise _unsupported(name, value)
    processors = LogitsProcessorList()
    penalty = getattr(settings, "repetition_penalty", None)
    if penalty not in (None, 1.0):
        processors.append(RepetitionPenaltyLogitsProcessor(penalty))
    if words := getattr(settings, "bad_words_ids", None):
        processors.append(_without_words(model, words))
    return processors


def _without_words(model: PreTrainedModel, words: list[list[int]]) -> NoBadWordsLogitsProcessor:
    """Rules words out as generate does, which leaves the end of an answer among them alone."""
    rows = model.get_output_embeddings().weight.shape[0]
    try:
        made = NoBadWordsLogitsProcessor(words, model.generation_config.eos_token_id)
    except ValueError as error:
        raise _unsupported("bad_words_ids", words) from error
    if not all(words) or any(token >= rows for word in words for token in word):
        raise _unsupported("bad_words_ids", words)
    return made


def _unsupported(name: str, value: object) -> ValueError:
    return ValueError(
        f"the model's generation_config sets {name}={value!r}, which is not supported; load it "
        f"with {name} unset."
    )
