"""The tables of the reward model."""

import pandas as pd
from invented import estimate

from reports.text import reward_model


def test_quality_has_its_error_and_its_n():
    keys = ("accuracy", "accuracy_all_pairs", "correlation", "rmse")
    table = reward_model.reward_table({key: estimate(0.8612, 0.0071, 100) for key in keys})
    assert list(table["Значение ± ст. ошибка"]) == ["0,8612\u00a0±\u00a00,0071"] * 4
    assert set(table["n"]) == {100}


def test_examples_are_the_lowest_the_middle_and_the_highest():
    scores = [3.0, -3.0, 0.0, 1.0, -1.0, 2.0, -2.0]
    held_out = pd.DataFrame({"text": list("abcdefg"), "rating": scores, "score": scores})
    table = reward_model.reward_examples(held_out, count=1)
    assert list(table["Предложение"]) == ["b", "c", "a"]
    assert list(table["Награда"]) == ["−3,00", "0,00", "3,00"]
