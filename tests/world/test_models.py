"""Policies from disk and back, good and bad."""

import copy
import json
import pickle
import re
import shutil
from pathlib import Path

import pytest
import tiny
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, modeling_utils

from warp_core.merge import slerp
from warp_core.store.errors import ConfigError, StorageError
from warp_core.world.models import (
    OutputLayer,
    fingerprint,
    load_policy,
    save_policy,
    set_weights,
    stop_tokens,
    weights_of,
    write_policy,
)


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


def same_bits(theta, other):
    return theta.keys() == other.keys() and all(torch.equal(theta[n], other[n]) for n in theta)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_saved_policy_loads_bit_for_bit(architecture, policy_folders, tmp_path):
    model, tokenizer = load_policy(str(policy_folders(architecture)))
    save_policy(model, tokenizer, tmp_path / "saved")
    again, tokenizer_again = load_policy(str(tmp_path / "saved"))
    assert fingerprint(again) == fingerprint(model)
    assert same_bits(weights_of(again), weights_of(model))
    assert tokenizer_again("good film")["input_ids"] == tokenizer("good film")["input_ids"]
    by_transformers = AutoModelForCausalLM.from_pretrained(tmp_path / "saved")
    assert fingerprint(by_transformers) == fingerprint(model)


@pytest.mark.parametrize("architecture", tiny.ARCHITECTURES)
def test_a_saved_policy_has_the_names_of_its_checkpoint(architecture, policy_folders, tmp_path):
    """And its bits: nothing is trained here."""
    save_policy(*load_policy(str(policy_folders(architecture))), tmp_path / "saved")
    checkpoint = load_file(policy_folders(architecture) / "model.safetensors")
    assert same_bits(load_file(tmp_path / "saved" / "model.safetensors"), checkpoint)


def test_the_experts_of_a_mixture_are_saved_as_other_programs_know_them(policy_folders, tmp_path):
    model, tokenizer = load_policy(str(policy_folders("mixtral")))
    theta = {name: tensor + 1 for name, tensor in weights_of(model).items()}
    set_weights(model, theta)
    save_policy(model, tokenizer, tmp_path / "saved")
    stored = load_file(tmp_path / "saved" / "model.safetensors")
    experts = {
        f"model.layers.{layer}.block_sparse_moe.experts.{expert}.w{w}.weight"
        for layer in range(2)
        for expert in range(3)
        for w in (1, 2, 3)
    }
    assert {name for name in stored if "expert" in name} == experts
    fused = theta["model.layers.1.mlp.experts.gate_up_proj"]  # (experts, 2 · inner, hidden)
    gate, up = (stored[f"model.layers.1.block_sparse_moe.experts.2.w{w}.weight"] for w in (1, 3))
    assert torch.equal(torch.cat([gate, up]), fused[2])
    assert same_bits(weights_of(load_policy(str(tmp_path / "saved"))[0]), theta)


def test_tied_weights_are_stored_once(policy_folders, tmp_path):
    model, tokenizer = load_policy(str(policy_folders("gpt2")))
    save_policy(model, tokenizer, tmp_path / "saved")
    assert "lm_head.weight" not in load_file(tmp_path / "saved" / "model.safetensors")
    again, _ = load_policy(str(tmp_path / "saved"))
    assert again.lm_head.weight is again.transformer.wte.weight
    assert sum(1 for w in weights_of(model).values() if w.shape == model.lm_head.weight.shape) == 1


@pytest.mark.parametrize("architecture", ["gpt2", "llama"])  # tied, and not
def test_the_output_layer_is_saved_like_any_other_and_comes_back(
    architecture, policy_folders, tmp_path
):
    model, tokenizer = load_policy(str(policy_folders(architecture)))
    save_policy(model, tokenizer, tmp_path / "saved")
    again, _ = load_policy(str(tmp_path / "saved"))
    assert type(model.get_output_embeddings()) is type(again.get_output_embeddings()) is OutputLayer
    x = tokenizer("the film was good", return_tensors="pt")["input_ids"].to(model.device)
    with torch.no_grad(), torch.autocast(model.device.type, torch.bfloat16):
        logits = again(input_ids=x).logits
        assert logits.dtype == torch.float32
        assert torch.equal(logits, model(input_ids=x).logits)


def test_stop_tokens_and_odd_settings_of_generation_stay_with_a_policy(policy_copy, tmp_path):
    """Published ones hold settings that transformers calls invalid: a temperature, no sampling."""
    settings = policy_copy / "generation_config.json"
    odd = {"eos_token_id": [0, 5], "temperature": 0.6, "top_p": 0.9}
    settings.write_text(json.dumps(json.loads(settings.read_text()) | odd))
    for source in (policy_copy, tmp_path / "1"):
        model, tokenizer = load_policy(str(source))
        assert model.generation_config.eos_token_id == [0, 5]
        save_policy(copy.deepcopy(model), tokenizer, tmp_path / str(1 + (source != policy_copy)))
    saved = json.loads((tmp_path / "2" / "generation_config.json").read_text())
    assert odd.items() <= saved.items()


def test_a_saved_folder_holds_safetensors_alone_and_no_rest(policy_folders, tmp_path):
    save_policy(*load_policy(str(policy_folders("llama"))), tmp_path / "out" / "saved")
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["saved"]
    suffixes = {p.suffix or p.name for p in (tmp_path / "out" / "saved").iterdir()}
    assert suffixes == {".safetensors", ".json", "SHA256SUMS"}


def test_weights_are_one_file_however_large(policy_folders, tmp_path, monkeypatch):
    split = modeling_utils.split_torch_state_dict_into_shards

    def as_if_a_billion_times_larger(state_dict, *, max_shard_size, **options):
        return split(state_dict, max_shard_size=max_shard_size // 10**9, **options)

    name = "split_torch_state_dict_into_shards"
    monkeypatch.setattr(modeling_utils, name, as_if_a_billion_times_larger)
    save_policy(*load_policy(str(policy_folders("gpt2"))), tmp_path / "saved")
    assert [p.name for p in (tmp_path / "saved").glob("*.safetensors*")] == ["model.safetensors"]


def test_written_files_are_those_of_a_save_without_its_seal(policy_folders, tmp_path):
    model, tokenizer = load_policy(str(policy_folders("gpt2")))
    save_policy(model, tokenizer, tmp_path / "saved")
    (tmp_path / "written").mkdir()
    write_policy(model, tokenizer, tmp_path / "written")
    files = {p.name: p.read_bytes() for p in (tmp_path / "saved").iterdir()}
    files.pop("SHA256SUMS")
    assert {p.name: p.read_bytes() for p in (tmp_path / "written").iterdir()} == files


def test_a_save_replaces_the_folder_of_an_earlier_attempt(policy_folders, tmp_path):
    (tmp_path / "saved").mkdir()
    (tmp_path / "saved" / "rest").touch()
    model, tokenizer = load_policy(str(policy_folders("gpt2")))
    save_policy(model, tokenizer, tmp_path / "saved")
    assert not (tmp_path / "saved" / "rest").exists()
    assert fingerprint(load_policy(str(tmp_path / "saved"))[0]) == fingerprint(model)


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
    classes = {"AutoConfig": "own.Own", "AutoModelForCausalLM": "own.Own"}
    settings |= {"model_type": "own", "architectures": ["Own"], "auto_map": classes}
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
    heads = {"kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4}
    experts = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "num_experts_per_tok": 2}
    sizes = tiny.GQA | heads | experts | {"num_key_value_heads": 2, "v_head_dim": 8}
    layers = {"moe_intermediate_size": 8, "first_k_dense_replace": 1}
    config = transformers.DeepseekV3Config(vocab_size=len(tokenizer), **sizes, **layers)
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


def test_a_saved_policy_keeps_all_its_stop_tokens(policy_folders, tmp_path):
    model, tokenizer = load_policy(str(policy_folders("llama")))
    model.generation_config.eos_token_id = [tokenizer.eos_token_id, 5]
    save_policy(model, tokenizer, tmp_path / "saved")
    again = load_policy(str(tmp_path / "saved"))
    assert stop_tokens(*again) == [tokenizer.eos_token_id, 5]
    again[0].generation_config.eos_token_id, again[1].eos_token = 0, "film"
    assert stop_tokens(*again) == [again[1].eos_token_id, 0]
    assert (tmp_path / "saved" / "generation_config.json").is_file()
