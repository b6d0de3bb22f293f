"""The hub's setting, params/hub_gpt2_imdb.yaml, end to end against a folder in the hub's cache layout.

Tiny models of the same kinds lie where a machine that has been online would have them.
"""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tiny
import torch
from datasets import ClassLabel, Dataset
from datasets.packaged_modules.parquet.parquet import Parquet
from safetensors.torch import load_file, save_file
from tokenizers import ByteLevelBPETokenizer
from transformers import DistilBertConfig, DistilBertForSequenceClassification

from warp_core.config import load_params
from warp_core.store.errors import ConfigError
from warp_core.store.files import read_json, read_jsonl
from warp_core.world.models import load_policy

ROOT = Path(__file__).resolve().parent.parent
SETTING = load_params(ROOT / "params" / "hub_gpt2_imdb.yaml")
MAIN, CONVERTED = "1" * 40, "2" * 40
SIZES = {
    "iterations": 1, "steps": 2, "batch_size": 4, "max_new_tokens": 5, "eval_prompts": 8,
    "keep_weights": "all",
}  # fmt: skip
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def repository(home: Path, id: str, commit: str = MAIN, ref: str = "main") -> Path:
    """An empty snapshot of a model in the hub's cache."""
    folder = home / "hub" / f"models--{id.replace('/', '--')}"
    name = folder / "refs" / ref
    name.parent.mkdir(parents=True, exist_ok=True)
    name.write_text(commit)
    (folder / "snapshots" / commit).mkdir(parents=True)
    return folder / "snapshots" / commit


def write_gpt2(folder: Path) -> None:
    """As that of 2020 is: vocabulary and merges, masks among the weights, no tokenizer.json."""
    tokenizer = ByteLevelBPETokenizer()
    tokenizer.train_from_iterator(tiny.WORDS, 300, special_tokens=[tiny.END], show_progress=False)
    tokenizer.save_model(str(folder))
    policy = tiny.make_policy("gpt2", tokenizer.get_vocab_size())
    end = tokenizer.token_to_id(tiny.END)
    policy.config.bos_token_id = policy.config.eos_token_id = end
    policy.save_pretrained(folder)
    (folder / "generation_config.json").unlink()
    weights = load_file(folder / "model.safetensors")
    masks = {f"transformer.h.{k}.attn.bias": torch.ones(1, 1, 64, 64).tril() for k in (0, 1)}
    save_file(weights | masks, folder / "model.safetensors", {"format": "pt"})


def write_distilbert(folder: Path) -> None:
    """A classifier of NEGATIVE and POSITIVE, with a vocabulary of word pieces."""
    letters = [chr(k) for k in range(ord("a"), ord("z") + 1)]
    words = [*SPECIAL, *tiny.WORDS, *letters, *(f"##{letter}" for letter in letters), ".", ","]
    words = list(dict.fromkeys(words))
    (folder / "vocab.txt").write_text("\n".join(words) + "\n")
    labels = {0: "NEGATIVE", 1: "POSITIVE"}
    config = DistilBertConfig(
        vocab_size=len(words), dim=16, hidden_dim=32, n_layers=1, n_heads=2, id2label=labels,
        max_position_embeddings=tiny.CONTEXT, label2id={name: k for k, name in labels.items()},
    )  # fmt: skip
    torch.manual_seed(0)
    DistilBertForSequenceClassification(config).save_pretrained(folder)


def write_imdb(home: Path) -> None:
    """Three splits, as `load_dataset` leaves them in its cache."""
    parts = {}
    for seed, split in enumerate(("train", "test", "unsupervised")):
        lines = tiny.write_prompts(home / f"{split}.txt", 200, 8, seed).read_text().splitlines()
        reviews = {"text": lines, "label": [k % 2 for k in range(len(lines))]}
        data = Dataset.from_dict(reviews).cast_column("label", ClassLabel(names=["neg", "pos"]))
        parts[split] = [str(home / f"{split}.parquet")]
        data.to_parquet(*parts[split])
    how = {"dataset_name": "imdb", "config_name": "plain_text", "hash": MAIN, "data_files": parts}
    made = Parquet(cache_dir=str(home / "made"), **how)
    made.download_and_prepare()
    place = home / "datasets" / "stanfordnlp___imdb" / "plain_text" / "0.0.0" / MAIN
    shutil.copytree(made.cache_dir, place)


@pytest.fixture(scope="module")
def hub(tmp_path_factory) -> Path:
    """What HF_HOME is to be, with the three repositories of the setting."""
    home = tmp_path_factory.mktemp("hub")
    write_gpt2(repository(home, SETTING["policy"]))
    write_distilbert(repository(home, SETTING["reward_model"]))
    write_imdb(home)
    return home


def offline(home: Path) -> dict[str, str]:
    others = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "HUGGINGFACE_"))}
    return others | {"HF_HOME": str(home), "HF_HUB_OFFLINE": "1"}


def test_the_hubs_setting_runs_end_to_end(hub, tmp_path):
    run = tmp_path / "runs" / SETTING["name"]
    command = [sys.executable, "-m", "papermill", "notebooks/experiment.ipynb"]
    command += [str(tmp_path / "out.ipynb"), "-k", "python3", "--no-progress-bar"]
    command += ["-f", "params/base.yaml", "-f", "params/hub_gpt2_imdb.yaml"]
    for key, value in (SIZES | {"run_dir": run}).items():
        command += ["-p", key, str(value)]
    done = subprocess.run(command, cwd=ROOT, env=offline(hub), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(read_jsonl(run / "metrics.jsonl")) == 2 * SIZES["steps"]
    summary = read_json(run / "summary.json")
    assert summary["warp_reward"]["n"] == SIZES["eval_prompts"]
    assert summary["kl_warp_sft"]["mean"] > 0
    train = (hub / "train.txt").read_text().splitlines()
    prompts = [sample["prompt"] for sample in read_jsonl(run / "samples.jsonl")]
    assert all(any(line.startswith(prompt) for line in train) for prompt in prompts)
    card = (run / "weights" / "warp" / "README.md").read_text(encoding="utf-8")
    for line in ("base_model: lvwerra/gpt2-imdb", "- stanfordnlp/imdb"):
        assert f"\n{line}\n" in card.replace('"', "")
    policy, tokenizer = load_policy(str(run / "weights" / "warp"))
    assert policy.config.eos_token_id == tokenizer.eos_token_id
    assert tokenizer.decode(tokenizer("so good")["input_ids"]) == "so good"


# Weights that exist as pickles alone

LOAD = "from warp_core.world.models import load_policy, fingerprint; import sys; "
LOAD += "print(fingerprint(load_policy(sys.argv[1])[0]))"


@pytest.fixture
def pickled(tmp_path) -> Path:
    """A policy on the hub without safetensors, which its pull request 3 adds."""
    folder = repository(tmp_path, "some/policy")
    write_gpt2(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    write_gpt2(repository(tmp_path, "some/policy", CONVERTED, "refs/pr/3"))
    return tmp_path


def loaded(home: Path, spec: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", LOAD, spec]
    env = offline(home) | {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=home, env=env, capture_output=True, text=True)


def test_pickles_are_refused_with_what_to_do_and_that_works(pickled):
    refused = loaded(pickled, "some/policy")
    message = refused.stderr.strip().splitlines()[-1]
    assert refused.returncode == 1
    assert (
        "policy: 'some/policy' given; cannot load a causal language model from it: its" in message
    )
    assert "its weights are pickles (pytorch_model.bin), which can run code" in message
    assert "give 'some/policy@refs/pr/N' if the hub's pull request N converts them" in message
    of_the_pull_request = loaded(pickled, "some/policy@refs/pr/3")
    assert of_the_pull_request.returncode == 0, of_the_pull_request.stderr[-2000:]
    command = re.search(r'`python -c "(.*)"`, and give \'(.*)\'$', message)
    assert command
    convert = [sys.executable, "-c", command[1]]
    subprocess.run(convert, cwd=pickled, env=offline(pickled), check=True, capture_output=True)
    own = loaded(pickled, f"./{command[2]}")
    assert own.stdout == of_the_pull_request.stdout != ""


def test_pickles_in_a_folder_are_refused_with_what_to_do(pickled):
    (folder,) = (pickled / "hub").glob(f"*/snapshots/{MAIN}")
    with pytest.raises(
        ConfigError, match=r"are pickles \(pytorch_model\.bin\).* by `python -c"
    ) as e:
        load_policy(str(folder))
    assert "refs/pr" not in str(e.value)
    assert "\n" not in str(e.value)


def test_a_revision_that_is_not_there_is_refused(pickled):
    refused = loaded(pickled, "some/policy@refs/pr/4")
    assert refused.returncode == 1
    assert "policy: 'some/policy@refs/pr/4' given; cannot load" in refused.stderr
