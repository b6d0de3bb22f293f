"""What texts look like, whatever a reward says of them: length, repetition, diversity."""

import itertools
from collections.abc import Sequence

import numpy as np


def text_statistics(texts: Sequence[str]) -> dict[str, float]:
    """What a reward does not see of a collapse; shares from 0 to 1.

    Returns:
        words: mean number; repetition: share of a text's words that it already used, mean over
        texts; distinct: of different texts; distinct_pairs: of different pairs of neighbouring words
        (distinct-2 of Li et al. 2016; 0 where there are none); empty: of texts without a word.
    """
    words = [text.lower().split() for text in texts]
    pairs = [pair for w in words for pair in itertools.pairwise(w)]
    repetition = [1 - len(set(w)) / len(w) for w in words if w]
    return {
        "words": float(np.mean([len(w) for w in words])),
        "repetition": float(np.mean(repetition)) if repetition else 0.0,
        "distinct": len(set(texts)) / len(texts),
        "distinct_pairs": len(set(pairs)) / len(pairs) if pairs else 0.0,
        "empty": sum(not w for w in words) / len(words),
    }
