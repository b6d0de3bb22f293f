"""LoRA: adapters through the whole algorithm, against the same computation on dense weights."""

import gc
import json
import shutil
import subprocess
import sys
import warnings
import weakref
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from warp_core import folders
from warp_core.config import WarpConfig
from warp_core.folders import _start
from warp_core.merge import MergeError, lerp, liti, merge_files, slerp, task_angles
from warp_core.rollout import completion_logits
from warp_core.store.adapter import Adapter
from warp_core.store.errors import ConfigError
from warp_core.store.files import read_json, read_jsonl
from warp_core.train import Run
from warp_core.warp import run_front, run_warp
from warp_core.world.lora import Adapted, Body, adapted_sizes, pairs_of
from warp_core.world.models import load_policy, weights_of

LORA = {"lora_rank": 2, "lora_alpha": 3.0, "steps": 3, "lr": 3e-2}


def dense(body: Path, adapter: Path | None) -> dict[str, torch.Tensor]:
    """W + B·A in float64, of a folder of peft's; without one W."""
    theta = {n: w.double() for n, w in weights_of(load_policy(str(body))[0]).items()}
    if adapter is None:
        return theta
    config, of = (
        read_json(adapter / "adapter_config.json"),
        load_file(adapter / "adapter_model.safetensors"),
    )
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    for name in [name for name in of if name.endswith(".lora_A.weight")]:
        b, a = of[name.replace("lora_A", "lora_B")].double(), of[name].double()
        matrix = name.removeprefix("base_model.model.").replace(".lora_A", "")
        delta = scale * b @ a
        theta[matrix] = theta[matrix] + (delta if delta.shape == theta[matrix].shape else delta.T)
    return theta


def close(got, expected, tolerance=1e-6):
    assert got.keys() == expected.keys()
    for name in got:
        torch.testing.assert_close(got[name], expected[name], rtol=0, atol=tolerance)


@pytest.fixture(scope="module", params=["gpt2", "llama"])
def finished(request, tmp_path_factory, make_tiny_params, policy_folders):
    """An experiment of two iterations with adapters, and its front."""
    folder = tmp_path_factory.mktemp(request.param) / "runs" / "run"
    params = {"policy": str(policy_folders(request.param)), "run_dir": str(folder), "workers": 1}
    config = WarpConfig(**make_tiny_params(**params, **LORA))
    run_warp(config)
    return config, run_front(config)


def test_two_iterations_are_those_of_dense_weights(finished):
    config, _ = finished
    weights, body = config.folder / "weights", config.folder / "weights" / "sft"
    theta_init, before = None, dense(body, None)
    for i in (1, 2):
        of = weights / f"iteration_{i}"
        runs = [dense(body, of / f"run_{m}") for m in (1, 2)]
        merged = dense(body, of / "slerp")
        close(merged, slerp(before, runs))
        after = weights / "warp" if i == 2 else of / "liti"
        close(dense(body, after), liti(before, merged, config.eta))
        expected = task_angles(before, runs)
        angles = read_json(config.folder / "summary.json")["angles"][i - 1]
        moved = {group: a for group, a in expected.items() if not a.isnan().any()}
        for group, pairs in moved.items():
            found = np.radians(np.array(angles[group], dtype=float))
            np.testing.assert_allclose(found, pairs.numpy(), atol=2e-6)
        assert moved.keys() <= angles.keys()
        assert len(moved) == 2  # of two layers
        theta_init, before = after, dense(body, after)
    assert Adapter(theta_init).rank == config.iterations * config.runs * config.lora_rank


def test_runs_differ_from_their_start_and_from_each_other(finished):
    config, _ = finished
    weights = config.folder / "weights"
    body = weights / "sft"
    for i, start in ((1, None), (2, weights / "iteration_1" / "liti")):
        runs = [dense(body, weights / f"iteration_{i}" / f"run_{m}") for m in (1, 2)]
        before = dense(body, start)
        moved = [sum((run[n] - before[n]).abs().sum() for n in run) for run in (*runs, runs[0])]
        assert min(moved) > 1e-3
        assert any(not torch.equal(runs[0][n], runs[1][n]) for n in before)
    rows = read_jsonl(config.folder / "metrics.jsonl")
    assert all(abs(row["kl_anchor"]) < 1e-5 for row in rows if row["step"] == 1)
    assert any(abs(row["kl_anchor"]) > 1e-3 for row in rows)


def test_the_front_is_one_adapter_and_a_number(finished):
    config, summary = finished
    store = config.folder.parent / "store"
    end = load_file(
        config.folder / "weights" / "iteration_2" / "slerp" / "adapter_model.safetensors"
    )
    evaluated = {p["eta"]: p["kl"]["mean"] for p in summary["front"]}
    assert evaluated[0.0] == 0.0
    assert evaluated[1.0] > evaluated[0.3] > 0
    rank = config.iterations * config.runs * config.lora_rank
    body = config.folder / "weights" / "sft"
    out = store.parent / "point"
    merge_files(body, [config.folder / "weights" / "iteration_2" / "slerp"], out, eta=0.3)
    point = load_file(out / "adapter_model.safetensors")
    assert point.keys() == end.keys()
    assert all(torch.equal(point[name], end[name]) for name in end)
    about = read_json(out / "adapter_config.json")
    assert (about["r"], about["lora_alpha"]) == (rank, pytest.approx(0.3 * rank))
    expected = liti(
        dense(body, None), dense(body, config.folder / "weights/iteration_2/slerp"), 0.3
    )
    close(dense(body, out), expected)
    shutil.rmtree(out)


def test_adapters_have_cards_that_say_how_they_are_loaded(finished):
    weights = finished[0].folder / "weights"
    for place in ("warp", "iteration_1/run_2", "iteration_2/slerp"):
        card = (weights / place / "README.md").read_text()
        assert "library_name: peft" in card
        assert "PeftModel.from_pretrained" in card
    assert not (weights / "sft" / "README.md").exists()


def test_peft_loads_what_the_loop_evaluates(finished):
    config, _ = finished
    weights = config.folder / "weights"
    body, tokenizer = load_policy(str(weights / "sft"))
    shared = Body(body)
    shared.load("warp", Adapter(weights / "warp"))
    ours, sft = Adapted(shared, ("warp",)), Adapted(shared, ())
    peft = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(weights / "sft"), weights / "warp"
    ).eval()
    y = tiny.rollout_of([3, 4], [[5, 6, 7], [8, 9, 10]], end=0)
    with torch.no_grad():
        of_peft = peft(input_ids=y.tokens[:, :-1]).logits[:, -3:]
        torch.testing.assert_close(completion_logits(ours, y), of_peft)
        of_body = AutoModelForCausalLM.from_pretrained(weights / "sft")(input_ids=y.tokens[:, :-1])
        torch.testing.assert_close(completion_logits(sft, y), of_body.logits[:, -3:])
        assert not torch.allclose(of_peft, of_body.logits[:, -3:], atol=1e-3)
        assert torch.equal(completion_logits(ours, y), completion_logits(ours, y))
    assert peft.peft_config["default"].base_model_name_or_path == config.policy
    assert len(tokenizer) == len(load_policy(str(weights / "sft"))[1])


# One run


@pytest.fixture
def make_run(policy_folders, tiny_reward_folder):
    """A run with adapters, at its start."""

    def make(anchor="ema", **changes):
        keys = {"batch_size": 4, "max_new_tokens": 5, "mu": 0.3, "anchor": anchor}
        config = WarpConfig(**LORA | keys | changes).training
        folder = policy_folders("llama")
        policy, of_kl, tokenizer = _start(config, folder, folder, 3, 1)
        ema = {n: w.clone() for n, w in weights_of(policy).items()} if anchor == "sft" else None
        prompts = [f"{a} {b}" for a in tiny.WORDS[:5] for b in tiny.WORDS[5:10]]

        def reward(texts):
            return torch.tensor([float(text.count("good") - text.count("bad")) for text in texts])

        return Run(policy, of_kl, tokenizer, reward, prompts, config, 3, ema)

    return make


def test_the_factors_alone_are_trained_and_the_anchor_follows_them(make_run):
    run = make_run()
    frozen = {n: w.clone() for n, w in run.policy.body.model.named_parameters() if "lora" not in n}
    before = {n: w.clone() for n, w in weights_of(run.policy).items()}
    assert all(torch.equal(w, weights_of(run.anchor)[n]) for n, w in before.items())
    assert all((w == 0).all() for n, w in before.items() if "lora_B" in n)
    run.step()
    after = weights_of(run.policy)
    for name, w in weights_of(run.anchor).items():
        torch.testing.assert_close(w, 0.7 * before[name] + 0.3 * after[name])
    assert any((w != 0).any() for n, w in after.items() if "lora_B" in n)
    for name, w in frozen.items():
        assert torch.equal(w, dict(run.policy.body.model.named_parameters())[name])


def test_factors_on_a_bfloat16_body_are_float32_and_begin_with_those_of_the_start(
    finished, monkeypatch
):
    """As on a GPU, whose bodies are bfloat16: too coarse for steps of 1e-5, and for a start that is told
    from what was added by its bits."""
    config, _ = finished
    weights, training = config.folder / "weights", config.training
    monkeypatch.setattr(folders, "_half", lambda _: True)
    start, sft = weights / "iteration_1" / "liti", weights / "sft"
    policy, anchor, _ = folders._start(training, start, sft, 0, 1)
    assert {w.dtype for w in weights_of(policy.body.model).values()} >= {torch.bfloat16}
    for name in ("init", "policy", "anchor"):
        assert {w.dtype for w in policy.body.factors(name).values()} == {torch.float32}
    loaded = pairs_of(policy.body.factors("init"), 1.0)
    for name, pair in Adapter(start).pairs.items():
        assert all(map(np.array_equal, pair, loaded[name]))
    if policy.config.model_type == "gpt2":  # whose LayerNorm of two types needs a GPU
        return
    with torch.autocast("cpu", torch.bfloat16), torch.no_grad():
        logits = [model(input_ids=torch.arange(6)[None]).logits for model in (policy, anchor)]
    assert torch.equal(*logits)


def test_an_ema_of_factors_is_that_of_products_but_for_their_covariance(make_run):
    """Σ w·(B − B̄)·(A − Ā), which is of second order in how far factors have gone."""
    run = make_run(lr=1e-2)

    def product(theta, name):
        b, a = (theta[f"{name}.lora_{which}.weight"].double() for which in "BA")
        return b @ a

    names = run.policy.body.layers()
    past = [{n: w.double().clone() for n, w in weights_of(run.policy).items()}]
    weights, mu = [1.0], run.training.mu
    for _ in range(8):
        run.step()
        past.append({n: w.double().clone() for n, w in weights_of(run.policy).items()})
        weights = [w * (1 - mu) for w in weights] + [mu]
    mean = {n: sum(w * of[n] for w, of in zip(weights, past, strict=True)) for n in past[0]}
    gap = size = 0.0
    for name in names:
        of_products = sum(w * product(of, name) for w, of in zip(weights, past, strict=True))
        off = [{n: each - mean[n] for n, each in of.items()} for of in past]
        covariance = sum(w * product(of, name) for w, of in zip(weights, off, strict=True))
        of_factors = product(weights_of(run.anchor), name)
        torch.testing.assert_close(of_products - of_factors, covariance, rtol=1e-3, atol=1e-6)
        gap += float(covariance.norm() ** 2)
        size += float(of_products.norm() ** 2)
    assert 1e-4 < (gap / size) ** 0.5 < 0.1


@pytest.mark.parametrize("anchor", ["ema", "sft"])
def test_a_run_goes_on_bit_for_bit(make_run, anchor):
    whole, half, rest = make_run(anchor), make_run(anchor), make_run(anchor)
    rows = [whole.step() for _ in range(4)]
    got = [half.step() for _ in range(2)]
    state = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in half.state().items()}
    rest.restore(state)
    got += [rest.step() for _ in range(2)]
    assert got == rows
    for of in ("policy", "ema"):
        expected = whole.state()[of]
        assert all(torch.equal(w, expected[n]) for n, w in rest.state()[of].items())


def test_the_kl_to_a_fixed_anchor_is_that_to_the_body(make_run):
    run = make_run("sft", lr=0.3)
    assert abs(run.step()["kl_anchor"]) < 1e-5
    kls = [run.step()["kl_anchor"] for _ in range(3)]
    assert max(map(abs, kls)) > 1e-2


@pytest.mark.parametrize(
    "changes",
    [{"micro_batch": 2}, {"gradient_checkpointing": True},
     {"micro_batch": 1, "gradient_checkpointing": True}],
)  # fmt: skip
def test_less_memory_gives_the_same_gradient(make_run, changes):
    whole, parts = make_run(), make_run(**changes)
    for run in (whole, parts):
        run.step()  # B is 0 before it
        run.gradient()
    for one, other in zip(whole.policy.parameters(), parts.policy.parameters(), strict=True):
        assert one.grad.abs().max() > 1e-3
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-3, atol=1e-5)


def test_a_body_goes_with_its_last_view(policy_folders):
    gc.collect()
    gc.disable()  # a circle would wait for it
    try:
        body = Body(load_policy(str(policy_folders("llama")))[0])
        body.add("one", 2, 2.0, ["model.layers.0.mlp.up_proj"], seed=0)
        views, there = [Adapted(body, ("one",)), Adapted(body, ())], weakref.ref(body.model)
        del body
        assert there() is not None
        views.clear()
        assert there() is None
    finally:
        gc.enable()


# Folders of peft's own


@pytest.fixture
def adapters(policy_folders, tmp_path):
    """Adapters that peft has written: names -> folders; keywords change the configuration."""

    def make(count=2, architecture="llama", **changes):
        folders = []
        for seed in range(count):
            model = AutoModelForCausalLM.from_pretrained(policy_folders(architecture))
            options = {"r": 3, "lora_alpha": 5, "target_modules": "all-linear"} | changes
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **options))
            generator = torch.Generator().manual_seed(seed)
            for name, parameter in model.named_parameters():
                if "lora_" in name:
                    parameter.data.normal_(0, 0.3, generator=generator)
            name = f"{architecture}_{len(list(tmp_path.iterdir()))}"
            model.save_pretrained(tmp_path / name)
            folders.append(tmp_path / name)
        return folders

    return make


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("method", ["slerp", "lerp"])
@pytest.mark.parametrize("m", [1, 2, 3])
def test_adapters_of_peft_are_merged_as_their_products(
    adapters, policy_folders, tmp_path, m, method, rslora
):
    body, folders = policy_folders("llama"), adapters(m, use_rslora=rslora)
    init, thetas = dense(body, None), [dense(body, each) for each in folders]
    found = merge_files(body, folders, tmp_path / "out", eta=0.7, method=method)
    merged = {"slerp": slerp, "lerp": lerp}[method](init, thetas)
    close(dense(body, tmp_path / "out"), liti(init, merged, 0.7), 2e-6)
    for group, angles in task_angles(init, thetas).items():
        if not angles.isnan().any():
            np.testing.assert_allclose(found[group], angles.numpy(), atol=2e-6)
    peft = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(body), tmp_path / "out")
    loaded = peft.merge_and_unload()
    close({n: w.double() for n, w in weights_of(loaded).items()}, liti(init, merged, 0.7), 2e-6)


def test_adapters_whose_start_is_another_one_are_merged_exactly(adapters, policy_folders, tmp_path):
    """Of other programs: none begins with the factors of the start."""
    body, (start, *folders) = policy_folders("llama"), adapters(3)
    init, thetas = dense(body, start), [dense(body, each) for each in folders]
    merge_files(start, folders, tmp_path / "out", eta=0.5)
    close(dense(body, tmp_path / "out"), liti(init, slerp(init, thetas), 0.5), 2e-6)


def test_the_command_merges_adapters_without_torch(adapters, policy_folders, tmp_path):
    body, folders = policy_folders("gpt2"), adapters(2, "gpt2")
    code = "import sys; from warp_core.merge import main; assert not main(); "
    code += "assert 'torch' not in sys.modules"
    command = [
        sys.executable,
        "-c",
        code,
        str(body),
        *map(str, folders),
        "--out",
        str(tmp_path / "o"),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "2 runs merged in 2 groups, angles" in done.stdout
    close(
        dense(body, tmp_path / "o"),
        slerp(dense(body, None), [dense(body, f) for f in folders]),
        2e-6,
    )


# What is refused


def test_adapters_that_do_not_belong_together_are_refused(adapters, policy_folders, tmp_path):
    body, (one, other) = policy_folders("llama"), adapters(2)
    (rank,) = adapters(1, r=4)
    (targets,) = adapters(1, target_modules=["q_proj"])
    (body_of_other,) = adapters(1, "gpt2")
    refused = {
        (body, (one, rank)): "θ\\^2 has rank 4, θ\\^1 rank 3",
        (
            body,
            (one, targets),
        ): "θ\\^2 and θ\\^1 adapt different matrices: model.layers.0.mlp.down_proj",
        (body, (one, body_of_other)): "θ\\^2 is an adapter of .*gpt2.*, θ\\^1 of .*llama",
        (body, (one, body)): "is no adapter, and others are",
        (
            policy_folders("gpt2"),
            (one, other),
        ): "is no adapter of .*gpt2: it has none of its matrices",
        (targets, (one, other)): "θ\\^1 and θ_init adapt different matrices",
    }
    for (start, thetas), said in refused.items():
        with pytest.raises(MergeError, match=said):
            merge_files(start, thetas, tmp_path / "out")
    wide = tiny.make_policy("llama", 30, intermediate_size=24)
    with pytest.raises(
        MergeError, match=r"is no adapter of .*wide: model\.layers\.0\.mlp\.\w+ is \("
    ):
        merge_files(
            tiny.save(wide, tiny.make_tokenizer(), tmp_path / "wide"), [one], tmp_path / "out"
        )
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"use_dora": True}, "only plain LoRA can be merged, and it has use_dora"),
        ({"bias": "all"}, "and it has bias"),
        ({"rank_pattern": {"q_proj": 2}}, "and it has rank_pattern"),
        ({"peft_type": "IA3"}, "and it has peft_type 'IA3'"),
        ({"r": "many"}, "is no configuration of LoRA"),
        ({"r": 2}, "factors of another rank than 2"),
    ],
)  # fmt: skip
def test_other_adapters_than_plain_lora_are_refused(
    adapters, policy_folders, tmp_path, change, said
):
    (folder,) = adapters(1)
    config = read_json(folder / "adapter_config.json")
    (folder / "adapter_config.json").write_text(json.dumps(config | change))
    with pytest.raises(MergeError, match=said):
        merge_files(policy_folders("llama"), [folder], tmp_path / "out")


def test_an_adapter_with_nan_is_refused_by_the_name_of_the_matrix(
    adapters, policy_folders, tmp_path
):
    from safetensors.torch import save_file

    (folder,) = adapters(1)
    of = load_file(folder / "adapter_model.safetensors")
    of["base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"][2, 1] = torch.nan
    save_file(of, folder / "adapter_model.safetensors")
    with pytest.raises(
        MergeError, match=r"NaN or infinite weights in: model\.layers\.1\.mlp\.up_proj"
    ):
        merge_files(policy_folders("llama"), [folder], tmp_path / "out")


def test_factors_in_memory_are_no_weights(adapters):
    one, other = (load_file(folder / "adapter_model.safetensors") for folder in adapters(2))
    with pytest.raises(MergeError, match="these are factors of LoRA"):
        slerp(one, [one, other])


@pytest.mark.parametrize(
    ("targets", "said"),
    [
        (["nothing"], "Target modules"),
        ("nothing.*", "Target modules"),
        (["wte"], "wte is no linear layer"),
    ],
)
def test_targets_that_match_nothing_are_refused(make_tiny_params, tmp_path, targets, said):
    config = WarpConfig(
        **make_tiny_params(run_dir=str(tmp_path / "run"), lora_rank=2, lora_targets=targets)
    )
    with pytest.raises(ConfigError, match=f"lora_targets: .* given; .*{said}"):
        run_warp(config)
    assert not (tmp_path / "run").exists()


def test_named_targets_alone_are_adapted(policy_folders):
    model, _ = load_policy(str(policy_folders("llama")))
    assert set(adapted_sizes(model, ["q_proj", "v_proj"])) == {
        f"model.layers.{k}.self_attn.{name}" for k in (0, 1) for name in ("q_proj", "v_proj")
    }
    assert list(adapted_sizes(model, r".*\.0\.mlp\.up_proj")) == ["model.layers.0.mlp.up_proj"]
