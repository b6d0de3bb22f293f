"""Tiny policies, reward models, tokenizers and prompts, built without any network.

Weights are drawn with a large spread, so that attention, positions and padding really matter.
"""

import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from warp_core.config import WarpConfig
from warp_core.rollout import Rollout
from warp_core.world.inputs import Inputs

END, PAD, UNK = "<|endoftext|>", "<pad>", "<unk>"
WORDS = [
    "good", "great", "fine", "nice", "fun", "bad", "poor", "dull", "weak", "sad", "film", "plot",
    "cast", "story", "scene", "music", "the", "a", "very", "so", "not", "and", "but", "it", "was",
    "is", "this",
]  # fmt: skip
CONTEXT = 64
SPREAD = 0.3

# What the Auto classes need to know of each architecture, at a width of 16.
GQA = {
    "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 1, "max_position_embeddings": CONTEXT,
}  # fmt: skip
ARCHITECTURES: dict[str, tuple[str, dict[str, Any]]] = {
    "gpt2": ("GPT2Config", {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": CONTEXT}),
    "llama": ("LlamaConfig", GQA),
    "qwen2": ("Qwen2Config", GQA | {"tie_word_embeddings": True}),
    "gemma2": ("Gemma2Config", GQA | {"head_dim": 8, "sliding_window": 4}),
    "gpt_neox": ("GPTNeoXConfig", {k: GQA[k] for k in GQA if k != "num_key_value_heads"}),
    "opt": ("OPTConfig", {"hidden_size": 16, "ffn_dim": 32, "num_hidden_layers": 2,
                          "num_attention_heads": 2, "word_embed_proj_dim": 16,
                          "max_position_embeddings": CONTEXT}),
    "bloom": ("BloomConfig", {"hidden_size": 16, "n_layer": 2, "n_head": 2}),  # ALiBi
    "mixtral": ("MixtralConfig", GQA | {"num_local_experts": 3, "num_experts_per_tok": 2}),
    "qwen3": ("Qwen3Config", GQA | {"head_dim": 8}),
    "gemma3": ("Gemma3TextConfig", GQA | {"head_dim": 8, "sliding_window": 4}),
    "lfm2": ("Lfm2Config", GQA | {"layer_types": ["conv", "full_attention"]}),  # a hybrid
}  # fmt: skip


def make_tokenizer(words: Sequence[str] = WORDS, pad: bool = False) -> PreTrainedTokenizerFast:
    """A word is a token with the space before it, as in GPT-2. `pad`: a pad token of its own."""
    tokenizer = _byte_level(_word_level([END, PAD, UNK, *(f"Ġ{word}" for word in words)]))
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, unk_token=UNK, pad_token=PAD if pad else None
    )


def letters_tokenizer() -> PreTrainedTokenizerFast:
    """Four tokens: the end, a, b, c. Different completions are different texts."""
    tokenizer = _byte_level(_word_level([END, "Ġa", "Ġb", "Ġc"]))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, pad_token=END)


def bytes_tokenizer() -> PreTrainedTokenizerFast:
    """Byte-pair encoding of any text; transformers 5 reads no other kind for Qwen2."""
    tokenizer = _byte_level(models.BPE())
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=[END], show_progress=False,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )  # fmt: skip
    tokenizer.train_from_iterator(WORDS, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END)


def sentencepiece_tokenizer(words: Sequence[str] = WORDS) -> PreTrainedTokenizerFast:
    """As in Llama 2: a space is "▁", <s> stands first, and a text decoded alone loses its space."""
    tokenizer = Tokenizer(_word_level([END, UNK, "<s>", *(f"▁{word}" for word in words)]))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=END, pad_token=END, bos_token="<s>", unk_token=UNK
    )


def _word_level(vocabulary: Sequence[str]) -> models.WordLevel:
    return models.WordLevel({token: i for i, token in enumerate(vocabulary)}, unk_token=UNK)


def _byte_level(model: models.Model) -> Tokenizer:
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def make_policy(
    architecture: str, vocabulary: int, seed: int = 0, spread: float = SPREAD, **changes: Any
) -> PreTrainedModel:
    config_class, sizes = ARCHITECTURES[architecture]
    config = getattr(transformers, config_class)(
        vocab_size=vocabulary, bos_token_id=0, eos_token_id=0, pad_token_id=None, **sizes | changes
    )
    return _spread(AutoModelForCausalLM.from_config(config, dtype=torch.float32), seed, spread)


def make_causal_reward_model(architecture: str, vocabulary: int) -> PreTrainedModel:
    """A classifier of one label on the body of a causal LM; its config names no pad token."""
    config_class, sizes = ARCHITECTURES[architecture]
    config = getattr(transformers, config_class)(
        vocab_size=vocabulary, bos_token_id=0, eos_token_id=0, pad_token_id=None, num_labels=1,
        **sizes,
    )  # fmt: skip
    return _spread(AutoModelForSequenceClassification.from_config(config, dtype=torch.float32), 0)


def make_reward_model(vocabulary: int, labels: Sequence[str], seed: int = 0) -> PreTrainedModel:
    config = transformers.DistilBertConfig(
        vocab_size=vocabulary, dim=16, hidden_dim=32, n_layers=1, n_heads=2, pad_token_id=1,
        max_position_embeddings=CONTEXT, id2label=dict(enumerate(labels)),
        label2id={label: i for i, label in enumerate(labels)},
    )  # fmt: skip
    return _spread(transformers.DistilBertForSequenceClassification(config), seed)


@torch.no_grad()
def _spread(model: PreTrainedModel, seed: int, spread: float = SPREAD) -> PreTrainedModel:
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            parameter.normal_(0.0, spread, generator=generator)
    return model.eval()


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, folder: Path) -> Path:
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def write_prompts(path: Path, lines: int = 300, words: int = 6, seed: int = 0) -> Path:
    rng = random.Random(seed)
    path.write_text("".join(" ".join(rng.choices(WORDS, k=words)) + "\n" for _ in range(lines)))
    return path


def all_completions(vocabulary: int, length: int, end: int) -> list[list[int]]:
    """Every completion of at most `length` tokens; one shorter than that stops with `end`."""
    completions = []
    for n in range(1, length + 1):
        for tokens in itertools.product(range(vocabulary), repeat=n):
            if end not in tokens[:-1] and (n == length or tokens[-1] == end):
                completions.append(list(tokens))
    return completions


def rollout_of(prompt: Sequence[int], completions: Sequence[Sequence[int]], end: int) -> Rollout:
    """The batch in which one prompt was answered by these completions."""
    n = max(len(y) for y in completions)
    tokens = [[*prompt, *y, *[end] * (n - len(y))] for y in completions]
    mask = [[True] * len(y) + [False] * (n - len(y)) for y in completions]
    completion_mask = torch.tensor(mask)
    prompt_mask = torch.ones(len(completions), len(prompt), dtype=torch.int64)
    return Rollout(
        torch.tensor(tokens), torch.cat([prompt_mask, completion_mask.long()], 1), completion_mask
    )


def exact_logprobs(
    model: PreTrainedModel, prompt: Sequence[int], completions: Sequence[Sequence[int]]
) -> Tensor:
    """log π(y|x) of each completion, from one forward pass each, without padding or cache."""
    return torch.stack([
        model(input_ids=torch.tensor([[*prompt, *y]])).logits[0, len(prompt) - 1 : -1]
        .log_softmax(dim=-1)[range(len(y)), y].sum()
        for y in completions
    ])  # fmt: skip


def inputs(**params: Any) -> Inputs:
    """Those of an experiment with these parameters."""
    return Inputs(*WarpConfig(**params).inputs)
