"""Prompts and rated texts: how they are split, and what is refused."""

import json
import random
from pathlib import Path

import pytest

from warp_core.store.errors import ConfigError
from warp_core.world import prompts as prompts_module
from warp_core.world.prompts import load_prompts, rated_texts


def load(path, words=3, eval_prompts=8):
    return load_prompts(str(path), words, eval_prompts)


def prompts_refused(path, **changes):
    with pytest.raises(ConfigError) as caught:
        load(path, **changes)
    return str(caught.value)


def test_prompts_are_first_words_split_once_and_disjoint(prompts_file):
    split = load(prompts_file)
    starts = {" ".join(line.split()[:3]) for line in prompts_file.read_text().splitlines()}
    assert len(split.evaluation) == 8
    assert len(split.train) > 200
    assert {*split.train, *split.evaluation} <= starts
    assert len(set(split.train)) == len(split.train)
    assert not set(split.train) & set(split.evaluation)


def test_the_split_does_not_depend_on_how_many_are_asked_for(prompts_file):
    first = load(prompts_file)
    random.seed(7)
    other = load(prompts_file, eval_prompts=20)
    assert other.train == first.train
    assert other.evaluation[:8] == first.evaluation


def test_no_evaluation_prompt_is_trained_on_even_if_many_texts_begin_alike(tmp_path):
    lines = [f"w{n % 40} same start {n}" for n in range(400)]
    (tmp_path / "alike.txt").write_text("\n".join(lines))
    split = load(tmp_path / "alike.txt", eval_prompts=2)
    every = load(tmp_path / "alike.txt", eval_prompts=len(split.evaluation))
    assert not set(every.train) & set(every.evaluation)
    full = prompts_refused(tmp_path / "alike.txt", eval_prompts=41)
    held_out = int(full.split("they leave ")[1].split()[0])
    assert held_out + len(split.train) == 40


def test_texts_that_are_too_short_give_no_prompt(tmp_path):
    lines = ["one two"] * 50 + [f"a b c{n}" for n in range(100)]
    (tmp_path / "short.txt").write_text("\n".join(lines))
    split = load(tmp_path / "short.txt")
    assert all(len(prompt.split()) == 3 for prompt in [*split.train, *split.evaluation])


def test_an_empty_prompt_file_is_refused(tmp_path):
    for content in ("", " \n\n\t\n"):
        (tmp_path / "empty.txt").write_text(content)
        assert "there is no text in it" in prompts_refused(tmp_path / "empty.txt")


def test_a_binary_prompt_file_is_refused(tmp_path):
    (tmp_path / "binary.txt").write_bytes(bytes(range(256)))
    message = prompts_refused(tmp_path / "binary.txt")
    assert message.startswith("prompts: ")
    assert "cannot be read as UTF-8" in message


def test_a_prompt_file_that_may_not_be_read_is_refused(prompts_file, monkeypatch):
    def locked(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", locked)
    assert "cannot be read" in prompts_refused(prompts_file)


def test_a_prompt_file_that_is_not_there_is_refused(tmp_path):
    assert "there is no such file" in prompts_refused(tmp_path / "absent.txt")


def test_too_few_texts_are_refused_with_their_number(prompts_file):
    message = prompts_refused(prompts_file, eval_prompts=61)
    assert message.startswith("eval_prompts: 61 given; ")
    assert "300 texts" in message
    assert "prompts of 3 words" in message


def test_an_asset_without_prompts_is_refused():
    assert "the only asset with prompts is" in prompts_refused("asset:minilm-l6")


def test_a_local_data_set_gives_its_text_column(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    rows = [{"label": n, "review": f"word{n} of a review"} for n in range(100)]
    (folder / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    split = load(folder)
    assert all(prompt.endswith("of a") for prompt in [*split.train, *split.evaluation])
    (folder / "train.jsonl").write_text('{"label": 1}\n' * 20)
    assert "its columns are label" in prompts_refused(folder)


def test_no_evaluation_prompt_begins_a_text_that_the_reward_model_was_trained_on(
    tmp_path, monkeypatch
):
    """Twenty beginnings for two hundred reviews: nearly every held-out one has been seen."""
    table = "".join(f"{n}\t1.5\tmovie {n % 20 if n < 190 else n} was {n}\n" for n in range(200))
    (tmp_path / "movie_reviews.tsv").write_text(table, encoding="latin-1")
    monkeypatch.setattr(prompts_module, "asset_path", lambda spec: tmp_path)
    train, held_out = rated_texts()
    seen = {" ".join(text.split()[:2]) for text, _ in train}
    unseen = [p for p in (" ".join(text.split()[:2]) for text, _ in held_out) if p not in seen]
    assert 0 < len(unseen) < len(held_out) / 2
    split = load(prompts_module.RATED, eval_prompts=len(unseen), words=2)
    assert split.evaluation == unseen
    assert "eval_prompts" in prompts_refused(prompts_module.RATED, eval_prompts=20, words=2)


def test_rated_texts_leave_parts_that_share_no_text(tmp_path, monkeypatch):
    table = "".join(f"{n}\t{n % 9 - 4}.5\treview {n} of a film\n" for n in range(200))
    (tmp_path / "movie_reviews.tsv").write_text(table, encoding="latin-1")
    monkeypatch.setattr(prompts_module, "asset_path", lambda spec: tmp_path)
    train, held_out = rated_texts()
    split = load(prompts_module.RATED, eval_prompts=20, words=5)
    parts = [{text for text, _ in train}, set(split.train), {text for text, _ in held_out}]
    assert [len(part) for part in parts] == [160, 20, 20]
    assert len(set.union(*parts)) == 200
    assert set(split.evaluation) == parts[2]
    for text, rating in train:
        n = int(text.split()[1]) % 9 - 4
        assert rating == n + (0.5 if n >= 0 else -0.5)
