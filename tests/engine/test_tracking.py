"""What a tracker is told: every run with its parameters and its whole curve, and no result differs."""

import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from warp_core import folders, warp
from warp_core.config import WarpConfig
from warp_core.engine import tracking
from warp_core.store.errors import ConfigError, Interrupted
from warp_core.store.files import read_jsonl
from warp_core.tasks import run_seed
from warp_core.warp import Experiment, run_warp

NAMES = ("tensorboard", "wandb", "mlflow", "trackio")


@pytest.fixture
def tensorboard():
    """Reads what it was told back: the scalars by name, and the parameters."""
    module = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="no tensorboard"
    )

    def read(folder: Path) -> dict[str, list[tuple[int, float]]]:
        assert len(list(folder.glob("events.*"))) == 1
        events = module.EventAccumulator(str(folder)).Reload()
        names = events.Tags()["scalars"]
        return {name: [(e.step, e.value) for e in events.Scalars(name)] for name in names}

    return read


def curves_of(config: WarpConfig, iteration: int, run: int) -> dict[str, list[tuple[int, float]]]:
    """From metrics.jsonl, as float32, which is what TensorBoard keeps."""
    rows = read_jsonl(config.folder / "metrics.jsonl")
    rows = [row for row in rows if (row["iteration"], row["run"]) == (iteration, run)]
    names = rows[0].keys() - {"iteration", "run", "step"}
    return {n: [(row["step"], torch.tensor(float(row[n])).item()) for row in rows] for n in names}


def folder_of(config: WarpConfig, iteration: int, run: int) -> Path:
    return config.folder.parent / "tracking" / config.name / f"iteration_{iteration}_run_{run}"


def weights_of(config: WarpConfig) -> dict[str, dict[str, torch.Tensor]]:
    files = (config.folder / "weights").rglob("model.safetensors")
    return {str(file.relative_to(config.folder)): load_file(file) for file in files}


def test_every_run_is_tracked_with_its_parameters_and_no_result_differs(
    tensorboard, make_tiny_params, tmp_path
):
    plain = WarpConfig(**make_tiny_params(run_dir=str(tmp_path / "a" / "run")))
    changes = {"tracker": "tensorboard", "workers": 2}  # in processes of their own
    config = WarpConfig(**make_tiny_params(run_dir=str(tmp_path / "b" / "run"), **changes))
    summary = run_warp(config)
    assert summary == run_warp(plain)
    assert not (tmp_path / "a" / "tracking").exists()
    torch.testing.assert_close(weights_of(config), weights_of(plain), rtol=0, atol=0)
    for i in (1, 2):
        for m in (1, 2):
            folder = folder_of(config, i, m)
            told = tensorboard(folder)
            assert told == curves_of(config, i, m)
            assert {"objective", "reward", "kl_anchor", "seconds"} <= told.keys()
            (parameters,) = folder.glob("*/hparams.yml")
            lines = set(parameters.read_text().splitlines())
            seed = run_seed(config, i, m)
            wanted = {f"iteration: {i}", f"run: {m}", f"run_seed: {seed}", "experiment: tiny"}
            assert wanted | {"lr: 0.01", "beta: 0.1", "steps: 2"} <= lines
    # The same results by the same names: a tracker is no part of them.
    assert Experiment(config).warp.name == Experiment(plain).warp.name
    assert run_warp(config.model_copy(update={"tracker": ""})) == summary


def test_a_run_that_goes_on_shows_its_whole_curve_once(tensorboard, tiny_params, monkeypatch):
    few = {"iterations": 1, "runs": 1, "steps": 5, "checkpoint_every": 2}
    config = WarpConfig(**tiny_params | few, tracker="tensorboard")
    step, calls = folders.Run.gradient, []

    def until_the_fourth(self):
        calls.append(self.t)
        if len(calls) == 4:
            signal.raise_signal(signal.SIGINT)
        return step(self)

    monkeypatch.setattr(folders.Run, "gradient", until_the_fourth)
    with pytest.raises(Interrupted):
        run_warp(config)
    assert [t for t, _ in tensorboard(folder_of(config, 1, 1))["reward"]] == [1, 2, 3]
    run_warp(config)
    assert calls == [0, 1, 2, 3, 3, 4]
    told = tensorboard(folder_of(config, 1, 1))
    assert [t for t, _ in told["reward"]] == [1, 2, 3, 4, 5]
    assert told == curves_of(config, 1, 1)


@pytest.mark.parametrize("name", NAMES)
def test_a_tracker_that_is_not_installed_is_refused_before_anything_is_there(
    name, tiny_params, tmp_path, monkeypatch
):
    monkeypatch.setattr("accelerate.tracking.get_available_trackers", list)  # none of them
    with pytest.raises(ConfigError) as caught:
        run_warp(WarpConfig(**tiny_params, tracker=name))
    message = str(caught.value)
    assert f"tracker: {name!r} given; it is not installed: `pip install {name}`" in message
    assert "\n" not in message
    assert not list(tmp_path.iterdir())


def test_what_is_installed_is_not_refused(tensorboard):
    tracking.check_tracker("tensorboard")
    tracking.check_tracker("")


class Failing:
    """A tracker whose service went away at its second step."""

    def __init__(self):
        self.told, self.finished = [], False

    def log(self, values, step):
        self.told.append(step)
        if step == 2:
            raise OSError("the service went away")

    def finish(self):
        self.finished = True


def test_a_tracker_that_fails_costs_no_run_and_is_asked_no_more(tiny_params, monkeypatch):
    failing = Failing()
    monkeypatch.setattr(tracking, "_tracker", lambda *_: failing)
    monkeypatch.setattr(warp, "check_tracker", lambda _: None)
    few = {"iterations": 1, "runs": 1, "steps": 4}
    config = WarpConfig(**tiny_params | few, tracker="mlflow")
    with pytest.warns(UserWarning, match=r"mlflow failed, .* OSError\('the service went away'\)"):
        run_warp(config)
    assert failing.told == [1, 2]
    assert [row["step"] for row in read_jsonl(config.folder / "metrics.jsonl")] == [1, 2, 3, 4]


def test_a_tracker_that_cannot_begin_costs_no_run(tiny_params, monkeypatch):
    def refuses(*_):
        raise RuntimeError("log in first")

    monkeypatch.setattr(tracking, "_tracker", refuses)
    monkeypatch.setattr(warp, "check_tracker", lambda _: None)
    few = {"iterations": 1, "runs": 1}
    with pytest.warns(UserWarning, match=r"wandb failed, .* RuntimeError\('log in first'\)"):
        run_warp(WarpConfig(**tiny_params | few, tracker="wandb"))
