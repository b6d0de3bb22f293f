"""Text statistics by hand."""

import pytest

from warp_core.world.texts import text_statistics


def test_text_statistics_by_hand():
    texts = [" good Good film good", "bad plot", "bad plot", " "]
    assert text_statistics(texts) == {
        "words": pytest.approx((4 + 2 + 2 + 0) / 4),
        "repetition": pytest.approx((1 / 2 + 0 + 0) / 3),
        "distinct": pytest.approx(3 / 4),
        "distinct_pairs": pytest.approx(4 / 5),  # "bad plot" is there twice
        "empty": pytest.approx(1 / 4),
    }


def test_texts_without_a_word_repeat_nothing():
    assert text_statistics(["", ""]) == {
        "words": 0.0,
        "repetition": 0.0,
        "distinct": 0.5,
        "distinct_pairs": 0.0,
        "empty": 1.0,
    }
