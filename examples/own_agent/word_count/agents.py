"""Two agents: a function for quick work, a class for work that takes a while and tells how far it is."""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

from actors.agent import AgentContext, agent
from cluster.errors import FailureCode, StepError

__all__ = ["CommonWords", "count_words"]

_CHUNK = 20_000


@agent("word_count")
def count_words(inputs: dict[str, Any]) -> dict[str, int]:
    """Count the words of `inputs["text"]`. Not async, so it runs in a thread and blocks nobody."""
    return {"words": len(_text_of(inputs).split())}


@agent("common_words")
class CommonWords:
    """Finds the most frequent words. One instance per replica: load what is dear in `__init__`."""

    def __init__(self) -> None:
        self._dull = frozenset({"a", "an", "and", "by", "for", "in", "is", "it", "of", "the", "to", "was"})

    async def execute(self, inputs: dict[str, Any], context: AgentContext) -> list[dict[str, Any]]:
        """Count in pieces, telling progress; at each await a cancellation may end it."""
        words = _text_of(inputs).lower().split()
        counts: Counter[str] = Counter()
        for start in range(0, len(words), _CHUNK):
            counts.update(word.strip(".,;:!?") for word in words[start : start + _CHUNK])
            await context.progress(min(1.0, (start + _CHUNK) / len(words)), f"{start} words")
            await asyncio.sleep(0)
        found = [(word, count) for word, count in counts.most_common() if word and word not in self._dull]
        return [{"word": word, "count": count} for word, count in found[: int(inputs.get("limit", 5))]]


def _text_of(inputs: dict[str, Any]) -> str:
    text = inputs.get("text")
    if not isinstance(text, str):
        # The client's fault: no retry would help. For a fault that may pass, say retryable=True.
        raise StepError("text must be a string", code=FailureCode.VALIDATION_ERROR)
    return text
