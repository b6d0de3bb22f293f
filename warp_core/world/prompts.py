"""Prompts and rated texts, and their one split into disjoint parts.

A prompt is the first few words of a text, or all of it, or a conversation. The texts are shuffled
once, with a seed of their own (SPLIT_SEED, never the experiment's), and cut into parts: for the
training of the reward model (rated texts alone), for RL, and for evaluation. No text is in two parts,
and no evaluation prompt is met in RL or begins a text that the reward model was trained on.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import chain, count, islice
from pathlib import Path
from typing import Any, NamedTuple

from warp_core.store.errors import ConfigError
from warp_core.world.assets import PREFIX, asset_path

SPLIT_SEED = 20240624  # the day arXiv 2406.16768 appeared
RATED = "asset:movie-reviews"
REWARD_SHARE, EVAL_SHARE = 0.8, 0.1  # of the rated texts; RL takes the rest
OWN_EVAL_SHARE = 0.2  # of texts that are not rated, where no reward model is trained
TEXT_COLUMNS = ("text", "prompt", "query", "review", "sentence", "messages", "conversations")
Conversation = list[dict[str, str]]
"""Messages of role and content, a user's last."""
Prompt = str | Conversation


class Rated(NamedTuple):
    """A text and the mean rating that people gave it, −4 (worst) to 4 (best)."""

    text: str
    rating: float


class Prompts(NamedTuple):
    """Disjoint prompts for RL and for evaluation."""

    train: list[Prompt]
    evaluation: list[Prompt]


def rated_texts() -> tuple[list[Rated], list[Rated]]:
    """Rated movie-review sentences: the reward model's part, and the held-out evaluation part."""
    rated = _read_rated()
    random.Random(SPLIT_SEED).shuffle(rated)
    return rated[: int(REWARD_SHARE * len(rated))], rated[-int(EVAL_SHARE * len(rated)) :]


def load_prompts(
    source: str,
    words: int,
    eval_prompts: int,
    column: str = "",
    split: str = "train",
    prepared: Callable[[list[Prompt]], list[Prompt]] = lambda prompts: prompts,
) -> Prompts:
    """The prompts of an experiment, X.

    Args:
        source: `asset:NAME`, a text file (a text a line), a JSON-lines file, a local data set, a hub id.
        words: a prompt is this many first words of a text, and shorter texts give none; 0: all of it.
        eval_prompts: how many to hold out for the evaluation.
        column, split: of a data set; without a column the first that is known by its name.
        prepared: what becomes of each part, which may leave some out.

    Raises ConfigError: the source is unreadable or empty, or too small for `eval_prompts`.
    """
    texts = _read(source, column, split)
    if words and any(not isinstance(text, str) for text in texts):
        raise ConfigError(
            f"prompt_words: {words} given; {source!r} has conversations, which need 0"
        )
    random.Random(SPLIT_SEED).shuffle(texts)
    of_reward, of_eval = (REWARD_SHARE, EVAL_SHARE) if source == RATED else (0, OWN_EVAL_SHARE)
    first, cut = int(of_reward * len(texts)), len(texts) - int(of_eval * len(texts))
    parts = texts[:first], texts[first:cut], texts[cut:]
    seen, train, held_out = (_different(part, words) for part in parts)
    train = {key: prompt for key, prompt in train.items() if key not in held_out}
    # Not what the reward model has seen in training.
    held_out = {key: prompt for key, prompt in held_out.items() if key not in seen}
    prompts = Prompts(prepared(list(train.values())), prepared(list(held_out.values())))
    if len(prompts.evaluation) < eval_prompts:
        of = f" of {words} words" if words else ""
        has = f"{source!r} has {len(texts)} texts; they leave {len(prompts.evaluation)} held-out prompts"
        raise ConfigError(f"eval_prompts: {eval_prompts} given; {has}{of}")
    if not prompts.train:
        raise ConfigError(f"prompts: {source!r} given; no prompts are left for training")
    return Prompts(prompts.train, prompts.evaluation[:eval_prompts])


def prompt_batches(prompts: Sequence[Prompt], batch_size: int, seed: int) -> Iterator[list[Prompt]]:
    """Endless batches: the prompts in a random order, all of them before one comes again."""
    rng = random.Random(seed)
    endless = chain.from_iterable(rng.sample(prompts, len(prompts)) for _ in count())
    while True:
        yield list(islice(endless, batch_size))


def with_completion(prompt: Prompt, completion: str) -> Prompt:
    """What a reward scores: one text, or the conversation with the answer."""
    if isinstance(prompt, str):
        return prompt + completion
    return [*prompt, {"role": "assistant", "content": completion}]


def as_text(prompt: Prompt) -> str:
    """For people, and for what reads texts alone: a conversation's messages, one below the other."""
    if isinstance(prompt, str):
        return prompt
    return "\n\n".join(message["content"] for message in prompt)


def _different(texts: Sequence[Prompt], words: int) -> dict[str, Prompt]:
    """Different prompts by what tells them apart, in the order of the texts."""
    if not words:
        return {json.dumps(text): text for text in texts}
    split = (str(text).split() for text in texts)
    return {prompt: prompt for w in split if len(w) >= words for prompt in [" ".join(w[:words])]}


def _read_rated() -> list[Rated]:
    """Different texts with their ratings, in the order of the file."""
    table = asset_path(RATED) / "movie_reviews.tsv"
    rows = (line.split("\t", 2) for line in table.read_text(encoding="latin-1").splitlines())
    ratings = {text.strip(): float(rating) for _, rating, text in rows}
    return [Rated(text, rating) for text, rating in ratings.items()]


def _read(spec: str, column: str, split: str) -> list[Prompt]:
    """Different texts or conversations, in their order."""
    if spec == RATED:
        found: list[Any] = [rated.text for rated in _read_rated()]
    elif spec.startswith(PREFIX):
        raise ConfigError(f"prompts: {spec!r} given; the only asset with prompts is {RATED!r}")
    elif Path(spec).is_file() and Path(spec).suffix not in (".jsonl", ".json"):
        try:
            found = list(Path(spec).read_text(encoding="utf-8").splitlines())
        except (OSError, UnicodeDecodeError) as why:
            raise ConfigError(f"prompts: {spec!r} given; cannot be read as UTF-8: {why}") from None
    else:
        found = _read_data_set(spec, column, split)
    texts = [each if isinstance(each, str) else _conversation(spec, each) for each in found]
    different = {
        json.dumps(text): text for text in texts if not isinstance(text, str) or text.strip()
    }
    if not different:
        raise ConfigError(f"prompts: {spec!r} given; there is no text in it")
    return list(different.values())


def _conversation(spec: str, messages: Any) -> Conversation:
    """Up to the user's last message: what an answer is to be given to."""
    try:
        turns = [{"role": str(m["role"]), "content": _content(m["content"])} for m in messages]
    except (TypeError, KeyError):
        raise ConfigError(
            f"prompts: {spec!r} given; its column holds neither texts nor lists of role and content: "
            f"{messages!r:.100}"
        ) from None
    last = max((k for k, turn in enumerate(turns) if turn["role"] == "user"), default=-1)
    if last < 0:
        raise ConfigError(f"prompts: {spec!r} given; a conversation without a user: {turns!r:.100}")
    return turns[: last + 1]


def _content(content: Any) -> str:
    """A message's text, which may come in parts; TypeError where one is no text."""
    if isinstance(content, list) and all(part["type"] == "text" for part in content):
        content = "".join(part["text"] for part in content)
    if not isinstance(content, str):
        raise TypeError(content)
    return content


def _read_data_set(spec: str, column: str, split: str) -> list[Any]:
    """A column of a JSON-lines file, of a local data set or of one on the hub."""
    if spec.startswith((".", "/", "~")) and not Path(spec).exists():
        raise ConfigError(f"prompts: {spec!r} given; there is no such file or folder")
    import datasets  # slow to import, and needed here alone

    where: Mapping[str, Any] = {"path": spec}
    if Path(spec).is_file():
        where = {"path": "json", "data_files": spec}
    try:
        data = datasets.load_dataset(**where, split=split)
    except Exception as error:  # its errors have no common class
        raise ConfigError(f"prompts: {spec!r} given; no data set: {str(error)[:600]}") from error
    names = (column,) if column else TEXT_COLUMNS
    found = next((name for name in names if name in data.column_names), None)
    if found is None:
        raise ConfigError(
            f"prompts: {spec!r} given; its columns are {', '.join(data.column_names)}, "
            f"one of {', '.join(names)} is needed"
        )
    return list(data[found])
