"""Policies, prompts and reward models from disk, good and bad; the reward model's training."""

import json
import math
import pickle
import random
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from warp_core import prompts as prompts_module
from warp_core import reward as reward_module
from warp_core.config import RewardConfig, WarpConfig
from warp_core.errors import ConfigError, StorageError
from warp_core.merge import slerp
from warp_core.models import (
    fingerprint,
    load_classifier,
    load_policy,
    load_weights,
    save_policy,
    set_weights,
    weights_of,
)
from warp_core.prompts import Rated, load_prompts, rated_texts
from warp_core.reward import (
    RewardModel,
    _batches,
    bootstrap_stderr,
    bradley_terry_loss,
    load_reward,
    pairwise_accuracy,
    run_reward_model,
    train_reward_model,
)

# Policies


@pytest.fixture
def policy_copy(policy_folders, tmp_path) -> Path:
    """A folder of the tiny GPT-2, to spoil."""
    return shutil.copytree(policy_folders("gpt2"), tmp_path / "policy")


def refused(spec):
    with pytest.raises(ConfigError) as caught:
        load_policy(str(spec))
    message = str(caught.value)
    assert message.startswith(f"policy: {str(spec)!r} given; ")
    return message


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_saved_policy_loads_bit_for_bit(architecture, policy_folders, tmp_path):
    model, tokenizer = load_policy(str(policy_folders(architecture)))
    save_policy(model, tokenizer, tmp_path / "saved")
    again, tokenizer_again = load_policy(str(tmp_path / "saved"))
    assert fingerprint(again) == fingerprint(model)
    assert tokenizer_again("good film")["input_ids"] == tokenizer("good film")["input_ids"]
    by_transformers = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert fingerprint(by_transformers) == fingerprint(model)
    stored = load_weights(tmp_path / "saved")
    assert stored.keys() == weights_of(model).keys()
    for name, tensor in weights_of(model).items():
        assert torch.equal(stored[name], tensor)


def test_tied_weights_are_stored_once(policy_folders, tmp_path):
    model, tokenizer = load_policy(str(policy_folders("gpt2")))
    save_policy(model, tokenizer, tmp_path / "saved")
    assert "lm_head.weight" not in load_file(tmp_path / "saved" / "model.safetensors")
    again, _ = load_policy(str(tmp_path / "saved"))
    assert again.lm_head.weight is again.transformer.wte.weight
    assert sum(1 for w in weights_of(model).values() if w.shape == model.lm_head.weight.shape) == 1


def test_a_saved_folder_holds_safetensors_alone_and_no_rest(policy_folders, tmp_path):
    save_policy(*load_policy(str(policy_folders("llama"))), tmp_path / "out" / "saved")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["saved"]
    suffixes = {p.suffix or p.name for p in (tmp_path / "out" / "saved").iterdir()}
    assert suffixes <= {".safetensors", ".json", ".jinja", "SHA256SUMS"}


def test_a_save_replaces_the_folder_of_an_earlier_attempt(policy_folders, tmp_path):
    model, tokenizer = load_policy(str(policy_folders("gpt2")))
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "rest").touch()
    theta = {name: tensor + 1 for name, tensor in weights_of(model).items()}
    save_policy(model, tokenizer, tmp_path / "saved", theta)
    assert not (tmp_path / "saved" / "rest").exists()
    stored = load_weights(tmp_path / "saved")
    assert all(torch.equal(stored[name], theta[name]) for name in theta)


def test_a_save_that_fails_leaves_nothing(policy_folders, tmp_path, monkeypatch):
    model, tokenizer = load_policy(str(policy_folders("gpt2")))

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tokenizer, "save_pretrained", full)
    with pytest.raises(StorageError, match=r"saved: \d+ bytes .* are needed"):
        save_policy(model, tokenizer, tmp_path / "saved")
    assert not list(tmp_path.iterdir())


def test_a_policy_is_float32_without_dropout_and_padded_on_the_left(policy_copy):
    model = AutoModelForCausalLM.from_pretrained(policy_copy).bfloat16()
    model.save_pretrained(policy_copy)
    assert json.loads((policy_copy / "config.json").read_text())["dtype"] == "bfloat16"
    model, tokenizer = load_policy(str(policy_copy))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert not any(module.training for module in model.modules())
    assert tokenizer.padding_side == "left"
    assert tokenizer.pad_token_id == tokenizer.eos_token_id


def test_a_pad_token_of_its_own_is_kept(policy_copy):
    tiny.make_tokenizer(pad=True).save_pretrained(policy_copy)
    _, tokenizer = load_policy(str(policy_copy))
    assert tokenizer.pad_token == tiny.PAD


def test_a_folder_that_is_not_there_is_refused(tmp_path):
    assert "there is no such folder" in refused(tmp_path / "absent")
    assert "there is no such folder" in refused("./absent")


def test_a_folder_without_a_config_is_refused(policy_copy):
    (policy_copy / "config.json").unlink()
    assert "has no config.json" in refused(policy_copy)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_policy_without_a_tokenizer_is_refused(architecture, tmp_path):
    tiny.make_policy(architecture, 400).save_pretrained(tmp_path)
    assert "cannot load a tokenizer" in refused(tmp_path)


def test_a_reward_model_without_a_tokenizer_is_refused(tmp_path):
    tiny.make_reward_model(30, ["reward"]).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=r"reward_model: .* cannot load a tokenizer"):
        load_reward(str(tmp_path))


def test_a_policy_without_weights_is_refused(policy_copy):
    (policy_copy / "model.safetensors").unlink()
    assert "cannot load a causal language model" in refused(policy_copy)


def test_a_classifier_is_no_policy(tiny_reward_folder):
    assert "cannot load a causal language model" in refused(tiny_reward_folder)


def test_a_tokenizer_larger_than_the_model_is_refused(policy_copy):
    tiny.make_tokenizer([*tiny.WORDS, "surplus"]).save_pretrained(policy_copy)
    known = 3 + len(tiny.WORDS)
    assert f"knows {known + 1} tokens, its model only {known}" in refused(policy_copy)


def test_a_tokenizer_without_an_end_token_is_refused(policy_copy):
    settings = policy_copy / "tokenizer_config.json"
    data = json.loads(settings.read_text())
    del data["eos_token"]
    settings.write_text(json.dumps(data))
    assert "no end-of-text token" in refused(policy_copy)


def test_pickled_weights_are_never_opened(policy_copy, tmp_path):
    (policy_copy / "model.safetensors").unlink()

    class Trap:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "sprung",))

    (policy_copy / "pytorch_model.bin").write_bytes(pickle.dumps(Trap()))
    refused(policy_copy)
    assert not (tmp_path / "sprung").exists()


def test_code_that_comes_with_a_model_is_never_run(policy_copy, tmp_path):
    settings = json.loads((policy_copy / "config.json").read_text())
    settings |= {"model_type": "own", "architectures": ["Own"],
                 "auto_map": {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}}  # fmt: skip
    (policy_copy / "config.json").write_text(json.dumps(settings))
    (policy_copy / "own.py").write_text(f"open({str(tmp_path / 'sprung')!r}, 'w')")
    refused(policy_copy)
    assert not (tmp_path / "sprung").exists()


@pytest.mark.parametrize("spec", ["somebody/absent-model", "no_such_model"])
def test_a_hub_id_that_cannot_be_had_is_refused(spec):
    assert "cannot load a tokenizer" in refused(spec)


def test_a_gguf_file_that_is_not_there_is_refused(tmp_path):
    assert "there is no such file" in refused(tmp_path / "absent.gguf")


def test_a_gguf_file_that_is_none_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("WARP_CACHE", str(tmp_path / "cache"))
    (tmp_path / "bad.gguf").write_bytes(b"GGUF" + bytes(100))
    assert re.search(r"bad\.gguf' given; cannot load a tokenizer", refused(tmp_path / "bad.gguf"))
    assert not list((tmp_path / "cache" / "converted").glob("*/"))


def test_weights_are_the_models_own_tensors_and_are_set_by_name(policy_folders):
    model, _ = load_policy(str(policy_folders("gpt2")))
    other = tiny.make_policy("gpt2", model.config.vocab_size, seed=1)
    assert fingerprint(model) != fingerprint(other)
    set_weights(model, weights_of(other))
    assert fingerprint(model) == fingerprint(other)
    with pytest.raises(KeyError):
        set_weights(model, {})


def test_buffers_that_a_model_stores_are_weights_too(tmp_path):
    """The expert biases of a mixture are no parameters, and yet they are trained and stored."""
    tokenizer = tiny.make_tokenizer()
    config = transformers.DeepseekV3Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, moe_intermediate_size=8,
        num_hidden_layers=2, num_attention_heads=2, num_key_value_heads=2, n_routed_experts=4,
        n_group=1, topk_group=1, num_experts_per_tok=2, first_k_dense_replace=1, kv_lora_rank=8,
        q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8,
    )  # fmt: skip
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    (name,) = [n for n, _ in model.named_buffers() if n.endswith("e_score_correction_bias")]
    model.get_buffer(name).copy_(torch.arange(4.0))
    save_policy(model, tokenizer, tmp_path / "policy")
    again, _ = load_policy(str(tmp_path / "policy"))
    assert again.get_buffer(name).tolist() == [0, 1, 2, 3]
    assert fingerprint(again) == fingerprint(model)
    merged = slerp(weights_of(model), [weights_of(again), weights_of(again)])
    set_weights(model, merged)
    assert model.get_buffer(name).tolist() == [0, 1, 2, 3]


# Reward models


def test_one_label_is_the_reward(tiny_reward_folder):
    texts = ["good film", "bad", "the plot was very dull and sad"]
    reward = load_reward(str(tiny_reward_folder))
    for text, score in zip(texts, reward(texts).tolist(), strict=True):
        ids = reward.tokenizer([text], return_tensors="pt")["input_ids"]
        assert score == pytest.approx(reward.model(ids).logits.item(), abs=1e-5)


@pytest.mark.parametrize(("positive", "sign"), [("GOOD", 1), ("BAD", -1)])
def test_two_labels_give_the_log_odds_of_the_positive_one(two_label_folder, positive, sign):
    texts = ["good film", "bad", "the plot was very dull"]
    reward = load_reward(str(two_label_folder), positive)
    batch = reward.tokenizer(texts, padding=True, return_tensors="pt")
    p = reward.model(**batch).logits.softmax(dim=-1)[:, 1]
    torch.testing.assert_close(reward(texts), sign * (p / (1 - p)).log(), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("label", ["", "good", "LABEL_1"])
def test_two_labels_need_the_name_of_the_positive_one(two_label_folder, label):
    with pytest.raises(ConfigError, match=f"positive_label: '{label}' given; .* BAD, GOOD"):
        load_reward(str(two_label_folder), label)


def test_one_label_has_no_positive_one(tiny_reward_folder):
    with pytest.raises(ConfigError, match="positive_label: 'reward' given"):
        load_reward(str(tiny_reward_folder), "reward")


@pytest.mark.parametrize("label", ["", "B"])
def test_three_labels_are_no_reward(tmp_path, label):
    tokenizer = tiny.make_tokenizer(pad=True)
    model = tiny.make_reward_model(len(tokenizer), ["A", "B", "C"])
    with pytest.raises(ConfigError, match=r"A, B, C.*more cannot be a reward"):
        load_reward(str(tiny.save(model, tokenizer, tmp_path / "three")), label)


def test_a_policy_without_its_head_is_refused(tmp_path):
    tokenizer = tiny.make_tokenizer(pad=True)
    folder = tiny.save(tiny.make_causal_reward_model("llama", len(tokenizer)), tokenizer, tmp_path)
    with pytest.raises(ConfigError, match=r"policy: .* weights are missing: lm_head"):
        load_policy(str(folder))


def test_cut_off_weights_are_refused(policy_folders, tmp_path):
    folder = shutil.copytree(policy_folders("llama"), tmp_path / "cut")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(ConfigError, match=r"policy: .* cannot load a causal language model"):
        load_policy(str(folder))


def test_a_reward_model_without_a_trained_head_is_refused(policy_folders):
    with pytest.raises(ConfigError, match=r"reward_model: .* weights are missing: score"):
        load_reward(str(policy_folders("llama")))


def test_a_reward_model_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"reward_model: .* there is no such folder"):
        load_reward(str(tmp_path / "absent"))
    with pytest.raises(ConfigError, match=r"reward_model: .* there is no such folder"):
        load_reward("runs/absent/model")


def test_a_reward_does_not_depend_on_the_texts_beside_it(tiny_reward_folder):
    texts = [" ".join(tiny.WORDS[: n % 9 + 1]) for n in range(150)]  # three batches
    reward = load_reward(str(tiny_reward_folder))
    together = reward(texts)
    assert together.shape == (150,)
    assert together.dtype == torch.float32
    alone = torch.cat([reward([text]) for text in texts])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
@pytest.mark.parametrize("pad", [True, False])
def test_a_reward_model_on_a_causal_lm_scores_the_last_word_of_each_text(
    architecture, pad, tmp_path
):
    """With a pad token that its config does not name, or without one."""
    tokenizer = tiny.make_tokenizer(pad=pad)
    if architecture == "qwen2":
        tokenizer = tiny.bytes_tokenizer()
    model = tiny.make_causal_reward_model(architecture, len(tokenizer))
    reward = load_reward(str(tiny.save(model, tokenizer, tmp_path)))
    texts = ["good film", "bad", "the plot was very dull and sad"]
    ids = [reward.tokenizer(text, return_tensors="pt")["input_ids"] for text in texts]
    alone = [model(of_text).logits.item() for of_text in ids]
    assert reward(texts).tolist() == pytest.approx(alone, abs=1e-4)


def test_a_text_that_is_too_long_is_cut_with_a_warning(tiny_reward_folder):
    reward = load_reward(str(tiny_reward_folder))
    words = [tiny.WORDS[n % 9] for n in range(100)]
    assert reward.max_tokens == tiny.CONTEXT
    with pytest.warns(UserWarning, match="reads 64 tokens; what stands behind"):
        empty, cut = reward(["", " ".join(words)]).tolist()
    assert math.isfinite(empty)
    assert cut == pytest.approx(reward([" ".join(words[:64])]).item(), abs=1e-5)


def test_the_length_that_a_reward_model_reads_is_the_smaller_of_both_limits(tiny_reward_folder):
    model, tokenizer = load_classifier(str(tiny_reward_folder))
    tokenizer.model_max_length = 10  # RoBERTa has 514 positions and reads 512 tokens
    assert RewardModel(model, tokenizer).max_tokens == 10


# The reward model's training


def test_bradley_terry_loss_by_hand():
    scores = torch.tensor([2.0, 0.0, 1.0])
    ratings = torch.tensor([3.0, -1.0, -1.0])  # the last two have no order
    wanted = (math.log1p(math.exp(-2)) + math.log1p(math.exp(-1))) / 2
    assert bradley_terry_loss(scores, ratings).item() == pytest.approx(wanted)
    assert bradley_terry_loss(-scores, ratings).item() == pytest.approx(wanted + 1.5)


def test_pairwise_accuracy_by_hand():
    ratings, scores = np.array([3.0, 1.0, 0.8, -2.0]), np.array([0.5, 0.9, 0.1, 0.2])
    # right of all six pairs: 0-2, 0-3, 1-2, 1-3; the pair 1-2 is too close at a margin of 0.5
    assert pairwise_accuracy(scores, ratings) == pytest.approx(4 / 6)
    assert pairwise_accuracy(scores, ratings, 0.5) == pytest.approx(3 / 5)
    assert pairwise_accuracy(ratings, ratings) == 1
    assert pairwise_accuracy(np.zeros(4), ratings) == 0


def test_bootstrap_error_of_a_mean_is_its_standard_error():
    scores = np.random.default_rng(1).normal(size=400)
    error = bootstrap_stderr(lambda s, _: float(s.mean()), scores, scores, draws=2000)
    assert error == pytest.approx(scores.std() / 20, rel=0.1)


def synthetic(n=400):
    """Texts of random words; "good" and "bad" decide the rating."""
    rng = random.Random(0)
    neutral = [word for word in tiny.WORDS if word not in ("good", "bad")]
    texts = [[*rng.choices(neutral, k=rng.randint(1, 5)), rng.choice(["good", "bad"])]
             for _ in range(n)]  # fmt: skip
    return [Rated(" ".join(rng.sample(words, len(words))), 2.0 if "good" in words else -2.0)
            for words in texts]  # fmt: skip


def test_training_separates_two_words_and_fixes_the_scale(tiny_reward_folder):
    reward = load_reward(str(tiny_reward_folder))
    rated = synthetic()
    train, held_out = rated[:320], rated[320:]
    rows = []
    train_reward_model(reward, train, RewardConfig(epochs=6, lr=1e-2), rows.append)
    scores = reward([text for text, _ in held_out]).numpy()
    ratings = np.array([rating for _, rating in held_out])
    assert pairwise_accuracy(scores, ratings) > 0.95
    assert np.abs(scores - ratings).mean() < 1
    assert [row["step"] for row in rows] == list(range(1, 61))
    assert rows[-1]["loss"] < 0.5 * rows[0]["loss"]
    assert not reward.model.training


def test_learning_rate_warms_up_and_falls_to_zero(tiny_reward_folder):
    rows = []
    reward = load_reward(str(tiny_reward_folder))
    config = RewardConfig(epochs=5, lr=1e-3, batch_size=16)
    train_reward_model(reward, synthetic(160), config, rows.append)
    rates = [row["lr"] for row in rows]
    assert len(rates) == 50
    assert rates[:3] == pytest.approx([5e-5, 1e-4, 1.5e-4])
    assert rates[-1] == pytest.approx(1e-3 / 50)
    assert max(rates) <= 1e-3


def test_same_seed_trains_the_same_reward_model(tiny_reward_folder):
    prints = []
    for seed in (0, 0, 1):
        reward = load_reward(str(tiny_reward_folder))
        train_reward_model(reward, synthetic(96), RewardConfig(seed=seed), lambda row: None)
        prints.append(fingerprint(reward.model))
    assert prints[0] == prints[1] != prints[2]


def test_a_loss_that_is_not_finite_stops_the_training(tiny_reward_folder):
    reward = load_reward(str(tiny_reward_folder))
    rated = [*synthetic(64), *[Rated("good", math.nan)] * 64]
    with pytest.raises(FloatingPointError, match=r"reward model, step \d+: loss is nan"):
        train_reward_model(reward, rated, RewardConfig(), lambda row: None)


@pytest.fixture
def little_data(monkeypatch):
    rated = synthetic(80)
    monkeypatch.setattr(reward_module, "rated_texts", lambda: (rated[:64], rated[64:]))


def test_a_reward_model_is_the_same_whatever_was_drawn_before(
    policy_folders, little_data, tmp_path
):
    """The head that its body does not have is drawn too."""
    prints = []
    for start in (1, 2):
        torch.manual_seed(start)
        config = RewardConfig(reward_body=str(policy_folders("llama")), batch_size=16,
                              run_dir=str(tmp_path / str(start)))  # fmt: skip
        summary = run_reward_model(config)
        assert summary["train_sentences"] == 64
        prints.append(fingerprint(load_reward(str(config.folder / "model")).model))
    assert prints[0] == prints[1]


def test_fewer_sentences_than_a_batch_are_refused(tiny_reward_folder, little_data, tmp_path):
    config = RewardConfig(reward_body=str(tiny_reward_folder), batch_size=65,
                          run_dir=str(tmp_path / "run"))  # fmt: skip
    with pytest.raises(ConfigError, match="batch_size: 65 given; there are only 64 training"):
        run_reward_model(config)
    assert not (tmp_path / "run").exists()


def test_another_body_in_the_same_run_folder_is_refused(policy_folders, little_data, tmp_path):
    body = shutil.copytree(policy_folders("gpt2"), tmp_path / "body")
    config = RewardConfig(reward_body=str(body), batch_size=16, run_dir=str(tmp_path / "run"))
    run_reward_model(config)
    weights = load_file(body / "model.safetensors")
    weights["transformer.ln_f.bias"][0] += 1
    save_file(weights, body / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ConfigError, match="body_sha256"):
        run_reward_model(config)


def test_an_epoch_meets_every_text_once_in_batches_of_about_one_length():
    rated = [Rated("x" * n, float(n)) for n in range(512)]
    batches = list(_batches(rated, 8, random.Random(0)))
    assert {len(batch) for batch in batches} == {8}
    assert sorted(rating for batch in batches for _, rating in batch) == list(range(512))
    spans = [max(r) - min(r) for r in ([rating for _, rating in b] for b in batches)]
    assert np.mean(spans) < 512 / 8
    means = [sum(rating for _, rating in batch) for batch in batches]
    assert means != sorted(means)
    assert [*_batches(rated, 8, random.Random(1))] != batches


# Prompts


def config(path, **changes):
    return WarpConfig(**{"prompts": str(path), "eval_prompts": 8, "prompt_words": 3} | changes)


def prompts_refused(path, **changes):
    with pytest.raises(ConfigError) as caught:
        load_prompts(config(path, **changes))
    return str(caught.value)


def test_prompts_are_first_words_split_once_and_disjoint(prompts_file):
    split = load_prompts(config(prompts_file))
    starts = {" ".join(line.split()[:3]) for line in prompts_file.read_text().splitlines()}
    assert len(split.evaluation) == 8
    assert len(split.train) > 200
    assert {*split.train, *split.evaluation} <= starts
    assert len(set(split.train)) == len(split.train)
    assert not set(split.train) & set(split.evaluation)


def test_the_split_does_not_depend_on_the_experiment(prompts_file):
    first = load_prompts(config(prompts_file))
    other = load_prompts(config(prompts_file, seed=7, eval_prompts=20, lr=1.0))
    assert other.train == first.train
    assert other.evaluation[:8] == first.evaluation


def test_no_evaluation_prompt_is_trained_on_even_if_many_texts_begin_alike(tmp_path):
    lines = [f"w{n % 40} same start {n}" for n in range(400)]
    (tmp_path / "alike.txt").write_text("\n".join(lines))
    split = load_prompts(config(tmp_path / "alike.txt", eval_prompts=2))
    every = load_prompts(config(tmp_path / "alike.txt", eval_prompts=len(split.evaluation)))
    assert not set(every.train) & set(every.evaluation)
    full = prompts_refused(tmp_path / "alike.txt", eval_prompts=41)
    held_out = int(full.split("they leave ")[1].split()[0])
    assert held_out + len(split.train) == 40


def test_texts_that_are_too_short_give_no_prompt(tmp_path):
    lines = ["one two"] * 50 + [f"a b c{n}" for n in range(100)]
    (tmp_path / "short.txt").write_text("\n".join(lines))
    split = load_prompts(config(tmp_path / "short.txt"))
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
    split = load_prompts(config(folder))
    assert all(prompt.endswith("of a") for prompt in [*split.train, *split.evaluation])
    (folder / "train.jsonl").write_text('{"label": 1}\n' * 20)
    assert "its columns are label" in prompts_refused(folder)


def test_rated_texts_leave_parts_that_share_no_text(tmp_path, monkeypatch):
    table = "".join(f"{n}\t{n % 9 - 4}.5\treview {n} of a film\n" for n in range(200))
    (tmp_path / "movie_reviews.tsv").write_text(table, encoding="latin-1")
    monkeypatch.setattr(prompts_module, "asset_path", lambda spec: tmp_path)
    train, held_out = rated_texts()
    split = load_prompts(config(prompts_module.RATED, eval_prompts=20, prompt_words=5))
    parts = [{text for text, _ in train}, set(split.train), {text for text, _ in held_out}]
    assert [len(part) for part in parts] == [160, 20, 20]
    assert len(set.union(*parts)) == 200
    assert set(split.evaluation) == parts[2]
    assert all(rating == int(text.split()[1]) % 9 - 4 + 0.5 * (-1) ** (int(text.split()[1]) % 9 < 4)
               for text, rating in train)  # fmt: skip


def test_reward_of_a_body_with_a_new_head_is_trainable(tiny_reward_folder):
    model, tokenizer = load_classifier(str(tiny_reward_folder), labels=1)
    RewardModel(model, tokenizer).score(["good"]).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
