"""What is measured, and with what."""

from typing import Annotated

from pydantic import Field

from warp_core.store.parameters import Folder, Integer, LearningRate, Parameters, Text

Count = Annotated[Integer, Field(ge=1, le=100_000)]


class BenchConfig(Parameters):
    """The parameters of `notebooks/performance.ipynb`; defaults are the figures of the report."""

    results: Text = "reports/bench/performance.json"
    """Where the measurements are kept, and what the notebook shows."""
    measure: bool = False
    """False: show the results that are there. True: measure anew first (an hour on two cores)."""
    policy: Text = "asset:smollm2-135m-instruct"
    """θ_sft, as in an experiment."""
    reward_model: Text = "runs/reward_model/model"
    """r: a reward model with one label."""
    batch_size: Count = 16
    prompt_tokens: Count = 16
    max_new_tokens: Count = 24
    lr: LearningRate = 1e-5
    rounds: Count = 5
    """Measured rounds of the steps and of the merge, behind `warmup_rounds`."""
    warmup_rounds: Count = 2
    stream_gb: Annotated[float, Field(gt=0, le=100)] = 2.0
    """Size of the large checkpoint that is merged by streaming, GB; four of them and θ_init."""
    trl_python: Folder = ".venv-trl/bin/python"
    """Python of an environment with trl; empty: do without the comparison."""
    mergekit_python: Folder = ".venv-mergekit/bin/python"
    """Python of an environment with mergekit; empty: do without."""
    folder: Folder = "runs/bench"
    """Where models for the measurements are made."""
