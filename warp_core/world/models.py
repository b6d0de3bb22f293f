"""Load and save a policy or the classifier behind a reward model.

A policy is any causal LM that transformers' Auto classes load: from an asset, a GGUF file, a local
folder, a hub id or, for one of its revisions, ID@REVISION. Weights are read and written as
safetensors (or GGUF) alone, never pickles, and no code that comes with a model is run. Everything is
float32, on the GPUs that are given, and dropout is off: the policy that is sampled must be the policy
whose gradient is taken.
"""

import hashlib
import inspect
import json
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import Cache, DynamicCache, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils.hub import has_file

from warp_core.store.errors import ConfigError, DamagedError, TrainingError
from warp_core.store.files import appearing, verify
from warp_core.world.assets import PREFIX, asset_path, cache_dir, made_once
from warp_core.world.lora import Adapted
from warp_core.world.prompts import Conversation, Prompt
from warp_core.world.spread import devices_of, spread

TOKENIZER = "a tokenizer", transformers.AutoTokenizer
CAUSAL_LM = "a causal language model", transformers.AutoModelForCausalLM
CLASSIFIER = "a trained sequence classifier", transformers.AutoModelForSequenceClassification
Policy = PreTrainedModel | Adapted
PICKLES = "pytorch_model.bin", "pytorch_model.bin.index.json"
Loaded = tuple[PreTrainedModel, PreTrainedTokenizerBase]
# transformers would hand the user's token to a converter, which writes into the model's repository.
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")
transformers.logging.disable_progress_bar()  # a model loads in a second; many bars hide our own


def load_policy(spec: str, gpus: int = 1) -> Loaded:
    """Policy and tokenizer (it pads on the left) of `asset:NAME`, a `.gguf` file, a folder or a hub id.

    Args:
        gpus: how many share its layers, where there are GPUs; 0: it stays in main memory.

    Raises ConfigError: there is no such model, it is no causal LM, it has no tokenizer, or no layers that
    can be shared.
    """
    source = str(asset_path(spec) / "model.gguf") if spec.startswith(PREFIX) else spec
    if source.endswith(".gguf"):
        source = str(_converted(Path(source)))
    model, tokenizer = _load("policy", source, CAUSAL_LM, gpus)
    if tokenizer.eos_token_id is None:
        raise _refused("policy", spec, "its tokenizer names no end-of-text token")
    tokenizer.padding_side = "left"
    known, embedded = len(tokenizer), model.get_input_embeddings().num_embeddings
    if known > embedded:
        why = f"its tokenizer knows {known} tokens, its model only {embedded}"
        raise _refused("policy", spec, f"{why}: they do not belong together")
    if type(head := model.get_output_embeddings()) is nn.Linear:
        head.__class__ = OutputLayer
    return model, tokenizer


class OutputLayer(nn.Linear):
    """A policy's last layer, which gives its logits in float32 under autocast too.

    bf16 knows logits near 16 to 0.06 alone: log-probabilities were off by up to 0.13 nats a token.
    """

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return super().forward(x.float())


def load_classifier(
    spec: str, labels: int | None = None, key: str = "reward_model", gpus: int = 1
) -> Loaded:
    """A sequence classifier and its tokenizer.

    Args:
        key: the parameter that names it, for errors.
        spec: `asset:NAME`, a local folder, or a hub id.
        labels: size of a new head, for a body that is to be trained; None: the head it has.
        gpus: as of `load_policy`.

    Raises ConfigError: there is no such model, it has no classification head, or no tokenizer.
    """
    source = str(asset_path(spec)) if spec.startswith(PREFIX) else spec
    model, tokenizer = _load(key, source, CLASSIFIER, gpus, labels)
    # Classifiers on a causal LM read the last token that is no pad: both must name the same one.
    model.config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


def _load(
    key: str, source: str, kind: tuple[str, Any], gpus: int, labels: int | None = None
) -> Any:
    """A model and its tokenizer; `labels`: with a new head, so that weights may be missing."""
    folder = Path(source)
    if source.startswith((".", "/", "~", "runs/")) and not folder.is_dir():
        raise _refused(key, source, "there is no such folder")
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise _refused(key, source, "the folder has no config.json")
    try:
        verify(folder)
    except DamagedError as error:
        raise _refused(key, source, error) from None
    tokenizer = _attempt(key, source, TOKENIZER)
    # Where its files are missing, transformers makes one up, of special tokens alone.
    if len(tokenizer) <= len(set(tokenizer.all_special_ids)):
        raise _refused(key, source, "cannot load a tokenizer from it: no vocabulary")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    options = {"dtype": torch.float32, "use_safetensors": True, "output_loading_info": True}
    head = {} if labels is None else {"num_labels": labels}
    model, info = _attempt(key, source, kind, **options, **head)
    missing = ", ".join(sorted(info["missing_keys"]))  # transformers fills them with random numbers
    if missing and labels is None:
        raise _refused(key, source, f"it is not {kind[0]}, weights are missing: {missing[:200]}")
    return spread(model.eval(), devices_of(gpus)), tokenizer


def _attempt(key: str, source: str, kind: tuple[str, Any], **options: Any) -> Any:
    what, auto = kind
    name, _, revision = (source, "", "") if Path(source).exists() else source.partition("@")
    try:
        safe = {"trust_remote_code": False}  # by default a terminal is asked whether to run it
        return auto.from_pretrained(name, revision=revision or "main", **safe, **options)
    except (OSError, ValueError, KeyError, TypeError, RuntimeError, SafetensorError) as error:
        given, why = str(Path(source) / options.get("gguf_file", "")), str(error)[:600]
        if isinstance(error, OSError) and "safetensors" in why:
            why = _pickled(name, revision, auto.__name__) or why
        raise _refused(key, given, f"cannot load {what} from it: {why}") from error


def _pickled(name: str, revision: str, auto: str) -> str:
    """What to do about weights that exist as pickles alone; nothing where there are none."""
    has = partial(has_file, name, revision=revision or "main")
    found = [file for file in PICKLES if has(file)]
    if not found:
        return ""
    folder = f"{Path(name).name}-safetensors"
    how = (
        f"import transformers as t; [c.from_pretrained({name!r}).save_pretrained({folder!r}) "
        f"for c in (t.{auto}, t.AutoTokenizer)]"
    )
    of_the_hub = f"give '{name}@refs/pr/N' if the hub's pull request N converts them, or "
    return (
        f"its weights are pickles ({found[0]}), which can run code and are not read; "
        f"{'' if Path(name).is_dir() else of_the_hub}convert them once, where you trust them, by "
        f'`python -c "{how}"`, and give {folder!r}'
    )


def _refused(key: str, given: str, why: object) -> ConfigError:
    return ConfigError(f"{key}: {given!r} given; {why}")


def _converted(gguf: Path) -> Path:
    """The GGUF file as a float32 safetensors folder in the cache, made once a content."""
    if not gguf.is_file():
        raise _refused("policy", str(gguf), "there is no such file")
    with gguf.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return made_once(cache_dir() / "converted" / digest[:32], lambda folder: _convert(gguf, folder))


def _convert(gguf: Path, folder: Path) -> None:
    given = {"key": "policy", "source": str(gguf.parent), "gguf_file": gguf.name}
    tokenizer = _attempt(kind=TOKENIZER, **given)
    plain = {"dtype": torch.float32, "quantization_config": GgufConfig(dequantize=True)}
    save_policy(_attempt(kind=CAUSAL_LM, **given, **plain), tokenizer, folder)


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt]) -> list[list[int]]:
    """Tokens of each prompt: a text's with the tokenizer's own beginning, but no end; a conversation's
    by its chat template, up to where the answer begins."""
    rendered = [p if isinstance(p, str) else rendered_chat(tokenizer, p, True) for p in prompts]
    plain = all(isinstance(prompt, str) for prompt in prompts)
    ids = tokenizer(rendered, add_special_tokens=plain)["input_ids"]
    if plain and tokenizer("a")["input_ids"][-1] == tokenizer.eos_token_id:
        ids = [each[:-1] for each in ids]
    return ids


def rendered_chat(tokenizer: PreTrainedTokenizerBase, messages: Conversation, answer: bool) -> str:
    """A conversation by the tokenizer's template; with `answer`, up to where one begins."""
    return str(
        tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=answer)
    )


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[Prompt], device: torch.device
) -> tuple[Tensor, Tensor]:
    """Tokens and attention mask of the prompts, both (B, P), padded on the left."""
    ids = {"input_ids": prompt_ids(tokenizer, prompts)}
    batch = tokenizer.pad(ids, padding=True, padding_side="left", return_tensors="pt")
    return batch["input_ids"].to(device), batch["attention_mask"].to(device)


def stop_tokens(model: Policy, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Ids that end a completion: the tokenizer's end-of-text token, then generation_config's others."""
    more = _generations_stops(model)
    stops = [tokenizer.eos_token_id, *(more if isinstance(more, list) else [more])]
    return [int(token) for token in dict.fromkeys(stops) if token is not None]


def _generations_stops(model: Policy) -> int | list[int] | None:
    return getattr(getattr(model, "generation_config", None), "eos_token_id", None)


def forward_logits(
    model: Policy, tokens: Tensor, mask: Tensor, keep: int, cache: Cache | None = None
) -> Tensor:
    """Logits of the last `keep` positions: (B, keep, V).

    Args:
        tokens: (B, S); with a cache, only those it has not seen.
        mask: (B, all tokens up to now).

    Position ids come from the mask: padding on the left moves nothing (ALiBi reads it itself).
    """
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -tokens.shape[1] :]
    some = {"position_ids": positions, "logits_to_keep": keep}
    takes = inspect.signature(model.forward).parameters
    options = {key: value for key, value in some.items() if key in takes}
    options |= {"past_key_values": cache, "use_cache": cache is not None}
    return model(input_ids=tokens, attention_mask=mask, **options).logits[:, -keep:]


@torch.no_grad()
def half_(model: PreTrainedModel) -> PreTrainedModel:
    """Weights that are never trained, in bfloat16, in place; but for those that give the logits."""
    head = model.get_output_embeddings()
    kept = set() if head is None else {id(parameter) for parameter in head.parameters()}
    for parameter in model.parameters():
        if id(parameter) not in kept:
            parameter.data = parameter.data.bfloat16()
    return model


@contextmanager
def recomputed(model: Policy) -> Iterator[None]:
    """Of a pass within it the graph keeps what goes into each layer, and computes the rest again.

    Raises TrainingError where the model does not say what its layers are.
    """
    whole = model.body.model if isinstance(model, Adapted) else model
    layers = [each for each in whole.modules() if isinstance(each, GradientCheckpointingLayer)]
    if not layers:
        raise TrainingError("gradient_checkpointing: the policy's layers cannot be computed again")
    for layer in layers:
        layer.forward = partial(
            checkpoint, layer.forward, use_reentrant=False, preserve_rng_state=False
        )
    try:
        yield
    finally:
        for layer in layers:
            del layer.forward


@torch.no_grad()
def cache_error(model: Policy, ids: Sequence[int]) -> float:
    """Largest difference, nats, of log-probabilities with a cache, a token at a time, and without.

    Of policies whose state is no key-value cache it is some nats: they cannot be sampled here.
    """
    tokens = torch.tensor([[*ids, ids[-1], ids[-1]]], device=model.device)  # (1, S)
    mask, cache = torch.ones_like(tokens), DynamicCache(config=model.config)
    plain = forward_logits(model, tokens, mask, keep=3)[0]  # (3, V)
    steps = [(0, len(ids)), (len(ids), len(ids) + 1), (len(ids) + 1, len(ids) + 2)]
    cached = [forward_logits(model, tokens[:, a:b], mask[:, :b], 1, cache)[0, 0] for a, b in steps]
    difference = torch.stack(cached).log_softmax(-1) - plain.log_softmax(-1)
    return float(difference.nan_to_num(math.inf, math.inf, math.inf).abs().max())


def weights_of(model: Policy) -> dict[str, Tensor]:
    """θ: what the model stores, by name, tied tensors once; the tensors themselves, no copies.

    Some models store buffers too: the expert biases of a mixture, say. The names are those that the
    model has in memory; `write_policy` says which ones its files have.
    """
    stored = model.state_dict().keys()
    buffers = {name: buffer for name, buffer in model.named_buffers() if name in stored}
    return {name: parameter.detach() for name, parameter in model.named_parameters()} | buffers


@torch.no_grad()
def set_weights(model: Policy, theta: Mapping[str, Tensor]) -> None:
    """Copy θ into the model, name by name; raises KeyError where a name is missing."""
    for name, tensor in weights_of(model).items():
        tensor.copy_(theta[name])


def write_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write what `from_pretrained` reads into a new or empty folder; the caller seals it.

    model.safetensors names the tensors as the model's checkpoint does, tied ones once, so that other
    programs find them: `save_pretrained` takes apart what transformers joins in memory, such as a
    mixture's experts. It is one file: shards, which a hub needs for uploads, are only more to check
    and to merge. generation_config.json has the stop tokens.
    """
    model.save_pretrained(folder, max_shard_size=2**63)
    tokenizer.save_pretrained(folder)


def save_policy(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """`write_policy` to a folder that appears whole and sealed or, by StorageError, not at all."""
    with appearing(folder, total_bytes(model)) as staging:
        write_policy(model, tokenizer, staging)


def total_bytes(model: PreTrainedModel) -> int:
    """What its weights take in a file, but for its header."""
    return sum(tensor.nbytes for tensor in weights_of(model).values())


def fingerprint(model: PreTrainedModel) -> str:
    """sha256 of a model's configuration and weights, wherever they were loaded from."""
    of_the_file = {"_name_or_path", "transformers_version", "dtype", "architectures"}
    settings = model.config.to_dict()
    computed = {key: settings[key] for key in sorted(settings.keys() - of_the_file)}
    digest = hashlib.sha256(json.dumps(computed, default=str).encode())
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.cpu().contiguous().numpy())
    return digest.hexdigest()


def digests(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """`fingerprint` of the model as sha256, and, as tokenizer, of how texts become tokens: where they
    are padded and cut, and what ends a completion."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    rules = json.loads(backend.to_str()) if backend else tokenizer.get_vocab()
    for of_the_last_call in ("padding", "truncation"):
        rules.pop(of_the_last_call, None)
    about = [rules, tokenizer.special_tokens_map, str(tokenizer.chat_template)]
    about += [tokenizer.padding_side, tokenizer.truncation_side, tokenizer.model_max_length]
    about.append(_generations_stops(model))
    text = json.dumps(about, sort_keys=True, default=str)
    return {"sha256": fingerprint(model), "tokenizer": hashlib.sha256(text.encode()).hexdigest()}
