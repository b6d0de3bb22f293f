"""Load and save a policy or the classifier behind a reward model.

A policy is any causal LM that transformers' Auto classes load: from an asset, a GGUF file, a local
folder or a hub id. Weights are read and written as safetensors (or GGUF) alone, never pickles, and
no code that comes with a model is run. Everything is float32, and dropout is off: the policy that
is sampled must be the policy whose gradient is taken.
"""

import hashlib
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from warp_core.assets import PREFIX, asset_path, cache_dir
from warp_core.errors import ConfigError, DamagedError
from warp_core.files import SUMS, appearing, make_room, verify

WEIGHTS_FILE, STEPS_FILE = "model.safetensors", "steps.jsonl"
transformers_logging.disable_progress_bar()  # a model loads in a second; many bars hide our own


def best_device() -> torch.device:
    """CUDA if it is there, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def load_policy(spec: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The policy and its tokenizer (padding on the left), float32, on `best_device()`.

    Args:
        spec: `asset:NAME`, the path of a `.gguf` file, a local folder, or a hub id.

    Raises:
        ConfigError: there is no such model, it is no causal LM, or it has no tokenizer.
    """
    source = spec
    if spec.startswith(PREFIX):
        source = str(asset_path(spec) / "model.gguf")
    if source.endswith(".gguf"):
        source = str(_converted(Path(source)))
    _check_folder(source, "policy")
    tokenizer = _load_tokenizer(source, "policy")
    model, info = _load(AutoModelForCausalLM, source, "policy", "a causal language model")
    _refuse_missing(info, "policy", spec, "a causal language model")
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"policy: {spec!r} given; its tokenizer names no end-of-text token")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    if len(tokenizer) > model.get_input_embeddings().num_embeddings:
        raise ConfigError(
            f"policy: {spec!r} given; its tokenizer knows {len(tokenizer)} tokens, its model only "
            f"{model.get_input_embeddings().num_embeddings}: they do not belong together"
        )
    if type(head := model.get_output_embeddings()) is nn.Linear:
        head.__class__ = OutputLayer
    return model.to(best_device()).eval(), tokenizer


class OutputLayer(nn.Linear):
    """A policy's last layer, which gives its logits in float32 under autocast too.

    bf16 knows logits near 16 to 0.06 alone; log-probabilities were wrong by up to 0.13 nats a token.
    """

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def load_classifier(
    spec: str, labels: int | None = None
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A sequence classifier and its tokenizer, float32, on `best_device()`.

    Args:
        spec: `asset:NAME`, a local folder, or a hub id.
        labels: size of a new head, for a body that is to be trained; None: the head it has.

    Raises:
        ConfigError: there is no such model, it has no classification head, or no tokenizer.
    """
    source = str(asset_path(spec)) if spec.startswith(PREFIX) else spec
    _check_folder(source, "reward_model")
    tokenizer = _load_tokenizer(source, "reward_model")
    head: dict[str, Any] = {} if labels is None else {"num_labels": labels}
    model, info = _load(AutoModelForSequenceClassification, source, "reward_model",
                        "a sequence classifier", **head)  # fmt: skip
    if labels is None:
        _refuse_missing(info, "reward_model", spec, "a trained classifier")
    # Classifiers on a causal LM read the last token that is no pad: both must name the same one.
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.config.pad_token_id = tokenizer.pad_token_id
    return model.to(best_device()).eval(), tokenizer


def _refuse_missing(info: Mapping[str, Any], key: str, spec: str, what: str) -> None:
    """transformers fills missing weights with random numbers."""
    if missing := sorted(info["missing_keys"]):
        raise ConfigError(
            f"{key}: {spec!r} given; it is not {what}, weights are missing: "
            f"{', '.join(missing)[:200]}"
        )


def _load_tokenizer(source: str, key: str) -> PreTrainedTokenizerBase:
    tokenizer = _attempt(AutoTokenizer, source, key, "a tokenizer")
    # Where its files are missing, transformers makes one up, of special tokens alone.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise ConfigError(
            f"{key}: {source!r} given; cannot load a tokenizer from it: no vocabulary"
        )
    return tokenizer


def _load(auto: Any, source: str, key: str, what: str, **options: Any) -> Any:
    """A float32 model, and which of its weights were missing."""
    return _attempt(auto, source, key, what, dtype=torch.float32, use_safetensors=True,
                            output_loading_info=True, **options)  # fmt: skip


def _check_folder(source: str, key: str) -> None:
    folder = Path(source)
    if source.startswith((".", "/", "~", "runs/")) and not folder.is_dir():
        raise ConfigError(f"{key}: {source!r} given; there is no such folder")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ConfigError(f"{key}: {source!r} given; the folder has no config.json")
    try:
        verify(folder)
    except DamagedError as error:
        raise ConfigError(f"{key}: {source!r} given; {error}") from None


def _attempt(auto: Any, source: str, key: str, what: str, **options: Any) -> Any:
    try:
        return auto.from_pretrained(source, **options)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        given = str(Path(source) / options.get("gguf_file", ""))
        raise ConfigError(
            f"{key}: {given!r} given; cannot load {what} from it: {str(error)[:600]}"
        ) from error


def _converted(gguf: Path) -> Path:
    """The GGUF file as a float32 safetensors folder in the cache, made once a content."""
    if not gguf.is_file():
        raise ConfigError(f"policy: {str(gguf)!r} given; there is no such file")
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    folder = cache_dir() / "converted" / digest[:32]
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(folder.with_suffix(".lock")):
            if not folder.is_dir():
                source, file = str(gguf.parent), {"gguf_file": gguf.name}
                tokenizer = _attempt(AutoTokenizer, source, "policy", "a tokenizer", **file)
                model = _attempt(AutoModelForCausalLM, source, "policy", "a causal language model",
                                 dtype=torch.float32, **file)  # fmt: skip
                # It is float32 now: what the config says of GGUF's quantisation no longer holds.
                delattr(model.config, "quantization_config")
                save_policy(model, tokenizer, folder)
    return folder


def weights_of(model: PreTrainedModel) -> dict[str, Tensor]:
    """θ: what the model stores, by name, tied tensors once; the tensors themselves, no copies.

    These are its parameters and, in some models, buffers: the expert biases of a mixture, say.
    """
    stored = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in stored}
    return {name: parameter.detach() for name, parameter in model.named_parameters()} | buffers


@torch.no_grad()
def set_weights(model: PreTrainedModel, theta: Mapping[str, Tensor]) -> None:
    """Copy θ into the model, name by name; raises KeyError where a name is missing."""
    for name, tensor in weights_of(model).items():
        tensor.copy_(theta[name])


def save_policy(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    theta: Mapping[str, Tensor] | None = None,
    log: Path | None = None,
) -> None:
    """Write a folder that `from_pretrained` reads; it appears whole and sealed, or not at all.

    Args:
        theta: weights to write in place of the model's own.
        log: a file that is kept with them, as steps.jsonl.
    """
    weights = weights_of(model) if theta is None else theta
    weights = {name: tensor.cpu().contiguous() for name, tensor in weights.items()}
    model.config.architectures = [type(model).__name__]  # other programs choose the class by it
    with appearing(folder, total_bytes(weights)) as staging:
        save_file(weights, staging / WEIGHTS_FILE, metadata={"format": "pt"})
        model.config.save_pretrained(staging)
        tokenizer.save_pretrained(staging)
        if log:
            shutil.copy(log, staging / STEPS_FILE)


def copy_policy(source: Path, folder: Path, log: Path) -> None:
    """The same folder once more, with a log of its own.

    By hard links where the disk has them: no file is ever rewritten.
    """
    with appearing(folder, log.stat().st_size) as staging:
        for path in source.iterdir():
            if path.name in (SUMS, STEPS_FILE):
                continue
            try:
                os.link(path, staging / path.name)
            except OSError:
                make_room(folder, path.stat().st_size)
                shutil.copy2(path, staging)
        shutil.copy(log, staging / STEPS_FILE)


def total_bytes(tensors: Mapping[str, Tensor]) -> int:
    """What tensors take in a file, but for its header."""
    return sum(tensor.nbytes for tensor in tensors.values())


def load_weights(folder: Path) -> dict[str, Tensor]:
    """θ of a folder that `save_policy` wrote, on the CPU; raises DamagedError where it is spoilt."""
    verify(folder, WEIGHTS_FILE)
    return load_file(folder / WEIGHTS_FILE)


def fingerprint(model: PreTrainedModel) -> str:
    """sha256 of a model's configuration and weights, wherever they were loaded from."""
    digest = hashlib.sha256(_settings(model).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().numpy())
    return digest.hexdigest()


def _settings(model: PreTrainedModel) -> str:
    """What the configuration says of the computation, as text."""
    of_the_file = {"_name_or_path", "transformers_version", "dtype", "architectures"}
    settings = model.config.to_dict()
    return json.dumps(
        {key: settings[key] for key in sorted(settings.keys() - of_the_file)}, default=str
    )
