"""TRL's RLOOTrainer, a step at a time, for `bench.py`; it runs in an environment of TRL's own.

Reads a line for each step and answers with {"seconds": …, "tokens": …}; see bench_worker.py.
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

settings = json.loads(sys.argv[1])
config = settings["config"]
torch.set_num_threads(settings["threads"])
device = "cuda" if torch.cuda.is_available() else "cpu"
tokenizer = AutoTokenizer.from_pretrained(config["policy"], padding_side="left")
policy = AutoModelForCausalLM.from_pretrained(config["policy"], dtype=torch.float32)
scorer_tokenizer = AutoTokenizer.from_pretrained(config["reward_model"])
scorer = AutoModelForSequenceClassification.from_pretrained(
    config["reward_model"], dtype=torch.float32
).to(device).eval()  # fmt: skip


def reward(prompts, completions, **_):
    texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    batch = scorer_tokenizer(texts, return_tensors="pt", padding=True).to(device)
    with torch.inference_mode():
        return scorer(**batch).logits[:, 0].tolist()


class OneByOne(TrainerCallback):
    def on_step_begin(self, *_, **__):
        if not sys.stdin.readline():
            os._exit(0)
        self.start = time.perf_counter()

    def on_step_end(self, *_, **__):
        self.seconds = time.perf_counter() - self.start

    def on_log(self, args, state, control, logs, **_):
        if "completions/mean_length" in logs:
            tokens = logs["completions/mean_length"] * config["batch_size"]
            say({"seconds": self.seconds, "tokens": tokens})


def say(answer):
    print(json.dumps(answer), file=answers, flush=True)


answers = os.fdopen(os.dup(1), "w")  # the trainer prints its own lines
os.dup2(2, 1)
trainer = RLOOTrainer(
    model=policy, reward_funcs=reward, processing_class=tokenizer, callbacks=[OneByOne()],
    train_dataset=Dataset.from_dict({"prompt": json.loads(Path(settings["prompts"]).read_text())}),
    args=RLOOConfig(
        output_dir=settings["folder"], per_device_train_batch_size=config["batch_size"],
        num_generations=2, max_completion_length=config["max_new_tokens"], max_steps=10_000,
        learning_rate=config["lr"], lr_scheduler_type="constant", beta=config["beta"],
        temperature=1.0, top_k=0, top_p=1.0, bf16=config["precision"] == "bf16",
        use_cpu=device == "cpu", report_to="none", logging_steps=1, save_strategy="no",
        disable_tqdm=True, gradient_checkpointing=False, sync_ref_model=True,
        ref_model_mixup_alpha=config["mu"], ref_model_sync_steps=1,
    ),
)  # fmt: skip
say({"ready": True})
trainer.train()
