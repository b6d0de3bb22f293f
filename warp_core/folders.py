"""What an engine computes: the parts of Algorithm 1, from folders of the store to a folder."""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from transformers import PreTrainedTokenizerBase

from warp_core.config import Training
from warp_core.engine.loop import to_the_end
from warp_core.engine.pieces import checked_gram, gram_of_piece
from warp_core.engine.tape import taped
from warp_core.engine.tracking import tracked
from warp_core.evaluate import Completions, complete, policy_kl
from warp_core.merge import Method, angles_of, group_of, merge_files
from warp_core.rollout import Rollout
from warp_core.store import tensors
from warp_core.store.adapter import Adapter, is_adapter, write_adapter
from warp_core.store.checkpoint import Checkpoint
from warp_core.store.files import sealed_jsonl, verify, write_json, write_jsonl
from warp_core.store.results import STEPS, WEIGHTS
from warp_core.store.tensors import Array, is_float
from warp_core.train import Run
from warp_core.world.inputs import read_prompts
from warp_core.world.lora import Adapted, Body, adapted_sizes, pairs_of
from warp_core.world.models import Policy, half_, load_policy, set_weights, weights_of, write_policy
from warp_core.world.prompts import with_completion
from warp_core.world.reward import stored_rewards

FROM_SFT, JUDGED, GEOMETRY = "kl_from_sft.jsonl", "judged.jsonl", "geometry.json"
ROLLOUTS = "rollouts.safetensors"
Passed = Callable[[], AbstractContextManager[Path | None]]


def rl_run(
    out: Path,
    work: Path,
    theta_init: Path,
    rewards: Sequence[Path],
    prompts: Path,
    training: Mapping[str, Any],
    scored: Sequence[Mapping[str, Any]],
    seed: int,
    checkpoint_every: int,
    passing: Sequence[tuple[Mapping[str, Any], Passed]] = (),
    theta_sft: Path | None = None,
    output: str = "policy",
    body: str = "",
    gpus: int = 1,
    tracking: Mapping[str, Any] | None = None,
) -> None:
    """θ^m (lines 4 to 10), and its metrics, a row a step; goes on from its last checkpoint."""
    config = Training(**training)
    policy, anchor, tokenizer = _start(config, theta_init, theta_sft, seed, gpus)
    on_the_way = [(p["training"]["steps"], p.get("output", "policy"), c) for p, c in passing]
    on_the_way.append((config.steps, output, lambda: nullcontext(out)))
    # Asked for or not: a checkpoint may be asked for it later.
    sft = config.anchor == "sft"
    theta_ema = {n: w.clone() for n, w in weights_of(policy).items()} if sft else None
    r, x = stored_rewards(rewards, scored, _half(config)), read_prompts(prompts)
    run = Run(policy, anchor, tokenizer, r, x, config, seed, theta_ema)  # line 4
    checkpoint = Checkpoint(work, config.steps, checkpoint_every)

    def write(folder: Path, kind: str) -> None:
        if isinstance(policy, Adapted):
            theta = run.theta_ema if kind == "ema" else weights_of(policy)
            _write_adapter(folder / WEIGHTS, policy, theta, config, body, tokenizer)
        else:
            model: Any = policy
            if kind == "ema":
                model = copy.deepcopy(policy) if sft else anchor
                set_weights(model, run.theta_ema)
            write_policy(model, tokenizer, folder / WEIGHTS)
        write_jsonl(folder / STEPS, checkpoint.rows())

    def passed(t: int) -> None:
        for kind, context in [(kind, context) for steps, kind, context in on_the_way if steps == t]:
            with context() as folder:
                if folder:
                    write(folder, kind)

    kept = nullcontext()
    if not (isinstance(policy, Adapted) or config.micro_batch or config.gradient_checkpointing):
        kept = taped(policy, config.max_new_tokens)
    with kept, tracked(tracking, work) as log:
        to_the_end(run, checkpoint, config.max_kl, passed, log)  # lines 5 to 10


def _start(
    config: Training, theta_init: Path, theta_sft: Path | None, seed: int, gpus: int
) -> tuple[Policy, Policy, PreTrainedTokenizerBase]:
    """A policy at θ_init, and what its KL is measured to."""
    if not config.lora_rank:
        start, tokenizer = load_policy(str(theta_init), gpus)
        if config.anchor == "ema":
            return start, copy.deepcopy(start), tokenizer
        sft, _ = load_policy(str(theta_sft), gpus)
        return start, half_(sft) if _half(config) else sft, tokenizer
    model, tokenizer = load_policy(str(theta_sft), gpus)
    if _half(config):
        half_(model)
    matrices, body = list(adapted_sizes(model, config.lora_targets)), Body(model)
    before: tuple[str, ...] = ()
    if is_adapter(theta_init):
        body.load("init", Adapter(theta_init))
        before = ("init",)
    for name in ("policy", "anchor"):
        body.add(name, config.lora_rank, config.lora_alpha, matrices, seed)
    anchor = (*before, "anchor") if config.anchor == "ema" else ()
    return Adapted(body, (*before, "policy")), Adapted(body, anchor), tokenizer


def _half(config: Training) -> bool:
    """Whether what is not trained has bfloat16 weights: on a GPU, whose memory is what is short."""
    return config.precision == "bf16" and torch.cuda.is_available()


def _write_adapter(
    folder: Path,
    policy: Adapted,
    theta: dict[str, Any],
    config: Training,
    body: str,
    tokenizer: PreTrainedTokenizerBase,
) -> None:
    """θ_init's factors, then those of the run: one adapter on θ_sft, of scale 1."""
    pairs = pairs_of(theta, config.lora_alpha / config.lora_rank)
    if len(policy.names) > 1:
        before = pairs_of(policy.body.factors(policy.names[0]), 1.0)
        pairs = {
            name: (
                np.concatenate([before[name][0], b], axis=1),
                np.concatenate([before[name][1], a]),
            )
            for name, (b, a) in pairs.items()
        }
    about = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "inference_mode": True, "bias": "none"}
    about |= {"base_model_name_or_path": body, "target_modules": sorted(pairs)}
    transposed = any(layer.fan_in_fan_out for layer in policy.body.layers().values())
    about |= {"fan_in_fan_out": transposed}
    folder.mkdir(parents=True)
    write_adapter(folder, pairs, about)
    tokenizer.save_pretrained(folder)


def merge(
    out: Path,
    theta_init: Path,
    thetas: Sequence[Path],
    eta: float,
    method: Method = "slerp",
    lam: float | None = None,
) -> None:
    """Lines 12, 13; and the angles of the task vectors, degrees by group; null where one is zero."""
    angles = merge_files(theta_init, thetas, out / WEIGHTS, lam, eta=eta, method=method)
    write_json(out / "angles.json", {name: _degrees(each) for name, each in angles.items()})


def evaluate(
    out: Path,
    policy: Path,
    theta_sft: Path,
    rewards: Sequence[Path],
    prompts: Path,
    scored: Sequence[Mapping[str, Any]],
    of_sft: Path | None = None,
    gpus: int = 1,
    **how: Any,
) -> None:
    """A policy's `Completions` of the prompts, with the KLs between it and θ_sft."""
    model, sft, tokenizer = _beside_sft(policy, theta_sft, gpus)
    r, x = stored_rewards(rewards, scored), read_prompts(prompts)
    write_completions(out, complete(model, tokenizer, r, x, reference=sft, **how))
    if of_sft:
        rollouts = read_completions(of_sft, model.device).rollouts
        kls = policy_kl(sft or model, model, rollouts, how["temperature"])
        write_jsonl(out / FROM_SFT, [{"kl": kl} for kl in kls])


def write_completions(folder: Path, answers: Completions) -> None:
    """Texts, rewards and KLs as rows; tokens and masks as tensors."""
    columns = zip(answers.texts, answers.rewards, answers.kls, strict=True)
    rows = [{"text": text, "reward": reward, "kl": kl} for text, reward, kl in columns]
    write_jsonl(folder / "answers.jsonl", rows)
    batches = ((i, *pair) for i, y in enumerate(answers.rollouts) for pair in vars(y).items())
    save_file({f"{i}.{name}": tensor.cpu() for i, name, tensor in batches}, folder / ROLLOUTS)


def read_completions(folder: Path, device: torch.device | str = "cpu") -> Completions:
    """What `write_completions` wrote; raises DamagedError where it is not that."""
    rows = sealed_jsonl(folder / "answers.jsonl", folder)
    verify(folder, ROLLOUTS)
    of, names = load_file(folder / ROLLOUTS, str(device)), [f.name for f in fields(Rollout)]
    rollouts = [Rollout(*(of[f"{i}.{n}"] for n in names)) for i in range(len(of) // len(names))]
    columns = ([row[key] for row in rows] for key in ("text", "reward", "kl"))
    return Completions(rollouts, *columns)


def _beside_sft(
    policy: Path, theta_sft: Path, gpus: int
) -> tuple[Policy, Policy | None, PreTrainedTokenizerBase]:
    """A policy, and θ_sft if that is another one; an adapter shares θ_sft's memory."""
    if not is_adapter(policy):
        model, tokenizer = load_policy(str(policy), gpus)
        same = policy == theta_sft
        return model, None if same else load_policy(str(theta_sft), gpus)[0], tokenizer
    model, tokenizer = load_policy(str(theta_sft), gpus)
    body = Body(model)
    body.load("policy", Adapter(policy))
    return Adapted(body, ("policy",)), Adapted(body, ()), tokenizer


def judge(
    out: Path,
    evaluation: Path,
    prompts: Path,
    judges: Sequence[Path],
    scored: Sequence[Mapping[str, Any]],
) -> None:
    """The judge's score of each completion with its prompt, as a reward gets it."""
    of = stored_rewards(judges, scored)
    texts = zip(read_prompts(prompts), read_completions(evaluation).texts, strict=True)
    scores = of([with_completion(*each) for each in texts]).tolist()
    write_jsonl(out / JUDGED, [{"judge": score} for score in scores])


def geometry(out: Path, theta_init: Path, thetas: Sequence[Path]) -> None:
    """Of runs and, last, their merge: angles between runs, degrees, least, mean and greatest of all
    groups, null where there is none; the inner products of all task vectors; the smallest cosine of
    two whole weights."""
    readers, m = tensors.in_files(theta_init, thetas), len(thetas)
    grams, whole = dict[str, Array](), np.zeros((m + 1, m + 1))  # of whole weights θ_init's first
    for name in readers.names:
        gram = grams.setdefault(group_of(name, "layer"), np.zeros((m, m)))
        for first, *others in readers.pieces(name):
            gram += checked_gram(name, first, others)
            if is_float(first.dtype):
                whole += gram_of_piece(np.zeros_like(first), [first, *others])
    upper, norms = np.triu_indices(m - 1, 1), np.sqrt(whole.diagonal())
    angles = np.degrees([angles_of(gram)[:-1, :-1][upper] for gram in grams.values()])
    known = angles[~np.isnan(angles)]
    ends = [float(f(known)) for f in (np.min, np.mean, np.max)] if known.size else None
    about = {"angle": ends, "gram": np.sum(list(grams.values()), axis=0).tolist()}
    write_json(out / GEOMETRY, about | {"cosine": float((whole / np.outer(norms, norms)).min())})


def _degrees(angles: np.ndarray) -> list[list[float | None]]:
    rows = np.degrees(angles).tolist()
    return [[None if math.isnan(angle) else round(angle, 4) for angle in row] for row in rows]
