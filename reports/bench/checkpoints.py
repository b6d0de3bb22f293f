"""The checkpoints that are measured: the policy, others of its family, and runs near them."""

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from reports.bench.config import BenchConfig
from warp_core.store.errors import ConfigError
from warp_core.store.files import SUMS

NEVER = "<jupyter_script>"  # the end token of the benchmark's policy: a word that is never drawn


def prepare(config: BenchConfig, folder: Path) -> Path:
    """The policy with an end token that is never drawn, and prompts of just so many tokens."""
    from warp_core.world.models import load_policy, save_policy
    from warp_core.world.prompts import rated_texts

    model, tokenizer = load_policy(config.policy)
    prompts = []
    for text, _ in rated_texts()[0]:
        ids = tokenizer(text)["input_ids"][: config.prompt_tokens]
        prompt = tokenizer.decode(ids)
        if len(tokenizer(prompt)["input_ids"]) == config.prompt_tokens == len(ids):
            prompts.append(prompt)
    if NEVER not in tokenizer.get_vocab():
        raise ConfigError(
            f"policy: {config.policy!r} given; the benchmark wants a tokenizer with {NEVER!r}, as "
            "SmolLM2's"
        )
    tokenizer.eos_token = NEVER
    model.config.eos_token_id = model.config.pad_token_id = tokenizer.eos_token_id
    save_policy(model, tokenizer, folder / "policy")
    (folder / "policy" / SUMS).unlink()  # a peer's checkpoint has none, and none is compared
    path = folder / "prompts.json"
    path.write_text(json.dumps(prompts[:1024]), encoding="utf-8")
    return path


def random_llama(folder: Path, shape: Sequence[int], shard: str = "5GB", **options: Any) -> Path:
    """A float32 Llama of drawn weights: hidden, layers, heads, key-value heads, feed-forward."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    layers = ("num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    sizes = dict(zip(("hidden_size", *layers, "intermediate_size"), shape, strict=True))
    config = LlamaConfig(tie_word_embeddings=True, **sizes, **options)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    model.save_pretrained(folder, max_shard_size=shard)
    return folder


def perturbed(source: Path, folder: Path, seed: int) -> Path:
    """A checkpoint a little away from another: noise of 0.001 on every weight."""
    import torch
    from safetensors.torch import load_file, save_file

    generator = torch.Generator().manual_seed(seed)
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    for file in sorted(source.glob("*.safetensors")):
        weights = load_file(file)
        for tensor in weights.values():
            tensor += 1e-3 * torch.randn(tensor.shape, generator=generator)
        save_file(weights, folder / file.name, metadata={"format": "pt"})
    return folder
