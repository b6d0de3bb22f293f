"""TRL's RLOOTrainer, a step at a time, for `steps.py`; it runs in an environment of TRL's own.

Reads a line {"threads": 1} for each step and answers {"seconds": …, "tokens": …}; see worker.py.
Two completions a prompt, for its baseline needs them; the reference follows by EMA at every step.
"""

import json
import os
import sys
import time
from pathlib import Path

os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "WANDB_DISABLED": "true"}

import torch
from datasets import Dataset
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl import RLOOConfig, RLOOTrainer


def trainer(settings, **options):
    """With the benchmark's policy, reward model, prompts and parameters."""
    config = settings["config"]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    scorer_tokenizer = AutoTokenizer.from_pretrained(config["reward_model"])
    scorer = AutoModelForSequenceClassification.from_pretrained(
        config["reward_model"], dtype=torch.float32
    )
    scorer.to(device).eval()

    def reward(prompts, completions, **_):
        texts = [a + b for a, b in zip(prompts, completions, strict=True)]
        batch = scorer_tokenizer(texts, return_tensors="pt", padding=True).to(device)
        with torch.inference_mode():
            return scorer(**batch).logits[:, 0].tolist()

    prompts = json.loads(Path(settings["prompts"]).read_text())
    fixed = {
        "output_dir": settings["folder"],
        "num_generations": 2,
        "lr_scheduler_type": "constant",
        "temperature": 1.0,
        "top_k": 0,
        "top_p": 1.0,
        "sync_ref_model": True,
        "ref_model_sync_steps": 1,
        "use_cpu": device == "cpu",
        "gradient_checkpointing": False,
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
    }
    return RLOOTrainer(
        model=AutoModelForCausalLM.from_pretrained(config["policy"], dtype=torch.float32),
        reward_funcs=reward,
        processing_class=AutoTokenizer.from_pretrained(config["policy"], padding_side="left"),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        args=RLOOConfig(
            per_device_train_batch_size=config["batch_size"],
            max_completion_length=config["max_new_tokens"],
            learning_rate=config["lr"],
            beta=config["beta"],
            ref_model_mixup_alpha=config["mu"],
            bf16=config["precision"] == "bf16",
            seed=config["seed"],
            **fixed,
            **options,
        ),
    )


class OneByOne(TrainerCallback):
    def __init__(self, batch_size):
        self.batch_size = batch_size

    def on_step_begin(self, *_, **__):
        line = sys.stdin.readline()
        if not line:
            os._exit(0)
        torch.set_num_threads(json.loads(line)["threads"])
        self.start = time.perf_counter()

    def on_step_end(self, *_, **__):
        self.seconds = time.perf_counter() - self.start

    def on_log(self, args, state, control, logs, **_):
        if "completions/mean_length" in logs:
            tokens = logs["completions/mean_length"] * self.batch_size
            say({"seconds": self.seconds, "tokens": tokens})


answers = os.fdopen(os.dup(1), "w")  # the trainer prints its own lines
os.dup2(2, 1)


def say(answer):
    print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    settings = json.loads(sys.argv[1])
    steps = trainer(settings, max_steps=10_000, save_strategy="no")
    steps.add_callback(OneByOne(settings["config"]["batch_size"]))
    say({"ready": True})
    steps.train()
