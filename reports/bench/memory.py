"""`python -m reports.bench.memory`: estimated and measured peaks of memory, a table.

Each setting is a whole tiny training and evaluation of a random Llama in a process of its own.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

MODEL: dict[str, Any] = {
    "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 8, "num_attention_heads": 8,
    "num_key_value_heads": 4, "vocab_size": 32000, "max_position_embeddings": 1024,
}  # fmt: skip
COMMON = {"iterations": 1, "runs": 1, "steps": 2, "workers": 1, "eval_prompts": 16, "lr": 1e-4}
SETTINGS: dict[str, dict[str, Any]] = {
    "all weights": {"batch_size": 16, "max_new_tokens": 64},
    "fixed anchor, max_kl": {"batch_size": 8, "max_new_tokens": 64, "anchor": "sft", "max_kl": 1e3},
    "micro_batch": {"batch_size": 32, "micro_batch": 4, "max_new_tokens": 96},
    "gradient_checkpointing": {
        "batch_size": 24, "max_new_tokens": 64, "gradient_checkpointing": True,
    },
    "both": {
        "batch_size": 32, "micro_batch": 8, "max_new_tokens": 64, "gradient_checkpointing": True,
    },
    "LoRA": {"batch_size": 16, "max_new_tokens": 64, "lora_rank": 16},
    "LoRA, both": {
        "batch_size": 32, "micro_batch": 4, "max_new_tokens": 96, "lora_rank": 16,
        "gradient_checkpointing": True,
    },
    "evaluation": {"batch_size": 2, "max_new_tokens": 192, "eval_prompts": 64},
}  # fmt: skip


def peak(folder: Path, params: dict[str, Any]) -> tuple[int, int]:
    """Bytes that were estimated, and the most that the process held; in this process."""
    import psutil
    import torch

    from warp_core.config import WarpConfig
    from warp_core.warp import Experiment, run_warp

    torch.set_num_threads(1)
    config = WarpConfig(**params, run_dir=str(folder / "runs" / "run"))
    estimated = Experiment(config).needs.bytes
    run_warp(config)
    status = Path(f"/proc/{psutil.Process().pid}/status").read_text()
    return estimated, 1024 * int(status.split("VmHWM:")[1].split()[0])


def world(folder: Path) -> dict[str, Any]:
    """A random policy and reward, and prompts, as parameters."""
    import random

    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import (
        DistilBertConfig,
        DistilBertForSequenceClassification,
        LlamaConfig,
        LlamaForCausalLM,
        PreTrainedTokenizerFast,
    )

    names = [f"w{k}" for k in range(MODEL["vocab_size"] - 2)]
    vocabulary = {token: k for k, token in enumerate(["<end>", "<pad>", *names])}
    rules = Tokenizer(models.WordLevel(vocabulary, unk_token="<end>"))
    rules.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=rules, eos_token="<end>", pad_token="<pad>", unk_token="<end>"
    )
    torch.manual_seed(0)
    policy = LlamaForCausalLM(LlamaConfig(**MODEL, eos_token_id=0, bos_token_id=0))
    small = DistilBertConfig(
        vocab_size=MODEL["vocab_size"], dim=64, hidden_dim=64, n_layers=1, n_heads=2,
        id2label={0: "reward"}, max_position_embeddings=1024, pad_token_id=1,
    )  # fmt: skip
    for name, model in (("policy", policy), ("reward", DistilBertForSequenceClassification(small))):
        model.save_pretrained(folder / name)
        tokenizer.save_pretrained(folder / name)
    rng = random.Random(0)
    lines = (" ".join(rng.choices(names, k=64)) for _ in range(400))
    (folder / "prompts.txt").write_text("\n".join(lines))
    where = {"policy": "policy", "reward_model": "reward", "prompts": "prompts.txt"}
    return {key: str(folder / name) for key, name in where.items()} | {"prompt_words": 64}


def main() -> None:
    """The table, a line as soon as it is there."""
    print(f"{'setting':24}{'estimated':>12}{'measured':>12}{'ratio':>8}")
    with tempfile.TemporaryDirectory() as temporary:
        given = world(Path(temporary))
        for name in sys.argv[1:] or SETTINGS:
            folder = Path(temporary) / name.replace(" ", "_")
            folder.mkdir()
            params = json.dumps(COMMON | given | SETTINGS[name])
            code = "import json, sys; from pathlib import Path; from reports.bench.memory import peak; "
            code += "print(json.dumps(peak(Path(sys.argv[1]), json.loads(sys.argv[2]))))"
            command = [sys.executable, "-c", code, str(folder), params]
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
            estimated, measured = json.loads(done.stdout.splitlines()[-1])
            sizes = f"{estimated / 1e9:9.2f} GB{measured / 1e9:9.2f} GB"
            print(f"{name:24}{sizes}{estimated / measured:8.2f}", flush=True)


if __name__ == "__main__":
    main()
