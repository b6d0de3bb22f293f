"""Fixtures: tiny models, tokenizers and prompts on disk, and parameters that point at them."""

import os
import shutil
import signal
import tempfile

os.environ["HF_HUB_OFFLINE"] = "1"  # before huggingface_hub is imported: tests ask no hub
os.environ["TOKENIZERS_PARALLELISM"] = "false"

from collections.abc import Callable
from pathlib import Path

# Notebooks of projects that tests make elsewhere show things by the reports' code.
os.environ["PYTHONPATH"] = str(Path(__file__).parents[1])

from typing import Any

import pytest
import tiny
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    """Tiny models are slower on many threads than on one."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def ctrl_c():
    """As on a terminal: where the tests run in a script's background, SIGINT is ignored."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session", autouse=True)
def own_temporary_folder():
    """So that memory that other programs have reserved there decides no test; a short path, for
    sockets."""
    folder = tempfile.mkdtemp(prefix="warp")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TMPDIR", folder)
        patch.setattr(tempfile, "tempdir", folder)
        yield
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def policy_folders(tmp_path_factory) -> Callable[[str], Path]:
    """Architecture -> folder of a tiny policy; its tokenizer has no pad token of its own."""
    root = tmp_path_factory.mktemp("policies")

    def folder(architecture: str) -> Path:
        if not (root / architecture).is_dir():
            words = architecture != "qwen2"
            tokenizer = tiny.make_tokenizer() if words else tiny.bytes_tokenizer()
            policy = tiny.make_policy(architecture, len(tokenizer))
            tiny.save(policy, tokenizer, root / architecture)
        return root / architecture

    return folder


@pytest.fixture(scope="session")
def tiny_reward_folder(tmp_path_factory) -> Path:
    """A reward model with one label."""
    tokenizer = tiny.make_tokenizer(pad=True)
    model = tiny.make_reward_model(len(tokenizer), ["reward"])
    return tiny.save(model, tokenizer, tmp_path_factory.mktemp("one_label"))


@pytest.fixture(scope="session")
def two_label_folder(tmp_path_factory) -> Path:
    """A reward model with the labels BAD and GOOD."""
    tokenizer = tiny.make_tokenizer(pad=True)
    model = tiny.make_reward_model(len(tokenizer), ["BAD", "GOOD"])
    return tiny.save(model, tokenizer, tmp_path_factory.mktemp("two_labels"))


@pytest.fixture(scope="session")
def prompts_file(tmp_path_factory) -> Path:
    """300 lines of random words."""
    return tiny.write_prompts(tmp_path_factory.mktemp("prompts") / "prompts.txt")


@pytest.fixture(scope="session")
def make_tiny_params(
    policy_folders, tiny_reward_folder, prompts_file
) -> Callable[..., dict[str, Any]]:
    """Parameters of an experiment that takes a second; keywords change them."""
    params = {
        "name": "tiny", "policy": str(policy_folders("gpt2")),
        "reward_model": str(tiny_reward_folder), "prompts": str(prompts_file),
        "iterations": 2, "runs": 2, "steps": 2, "lr": 1e-2, "batch_size": 4, "prompt_words": 3,
        "max_new_tokens": 5, "eval_prompts": 8,
    }  # fmt: skip
    return lambda **changes: params | changes


@pytest.fixture
def tiny_params(make_tiny_params, tmp_path) -> dict[str, Any]:
    """The same, with a run folder of the test's own."""
    return make_tiny_params(run_dir=str(tmp_path / "run"))


@pytest.fixture
def own_cache(monkeypatch, tmp_path) -> Path:
    """An empty cache folder, for this test alone."""
    monkeypatch.setenv("WARP_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"
