"""What an experiment is made of, by name: θ_sft, the reward model r, the prompts X and the judge."""

from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from warp_core.store.parameters import Integer, Parameters, Text
from warp_core.world.scorer import Judge, Rewards, Scorer, scorers


class World(Parameters):
    """The parameters that `warp_core.world.inputs.Inputs` loads."""

    policy: Text = "asset:smollm2-135m-instruct"
    """θ_sft: `asset:NAME`, a GGUF file, a local folder or a hub id."""
    reward_model: Rewards = "runs/reward_model/model"
    """r: a local folder or a hub id of a sequence classifier with one or two labels; or your own code,
    `python:FILE:FUNCTION`; or a list of `Scorer`s, whose weighted sum it is."""
    positive_label: str = ""
    """Which label of a two-label reward model is the good one; empty for a one-label model."""
    prompts: Text = "asset:movie-reviews"
    """X: `asset:NAME`, a text file (one text a line), a local data set or a hub id."""
    prompts_column: str = ""
    """Column of a data set; empty: the first that is called text, prompt, messages or the like."""
    prompts_split: Text = "train"
    """Split of a data set."""
    prompt_words: Annotated[Integer, Field(ge=0, le=10_000)] = 4
    """A prompt is this many first words of a text; 0: the text or conversation as it is."""
    max_prompt_tokens: Annotated[Integer, Field(ge=0, le=1_000_000)] = 0
    """Longer prompts are left out; 0: none is."""
    chat_template: Literal["auto", "none"] = "auto"
    """auto: conversations, and whole texts as a user's message, are rendered by the policy's template."""
    eval_prompts: Annotated[Integer, Field(ge=2, le=1_000_000)] = 128
    """Held-out prompts of the evaluation, one completion each."""
    judge: Judge = ""
    """What judges completions beside the reward, and is never trained on: `vader`, or as a reward."""

    @field_validator("positive_label")
    @classmethod
    def _of_one_reward(cls, value: str, info: ValidationInfo) -> str:
        if value and not isinstance(info.data.get("reward_model", ""), str):
            raise ValueError("'', for each of several rewards has its own")
        return value

    @property
    def rewards(self) -> list[Scorer]:
        """What r is the sum of."""
        return scorers(self.reward_model, self.positive_label)

    @property
    def judges(self) -> list[Scorer]:
        """The judge, if there is one."""
        return scorers(self.judge)
