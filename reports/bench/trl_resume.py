"""TRL's KL to its EMA anchor at each of four steps, run through and resumed behind the second.

Answers {"straight": [nats per completion, …], "resumed": […]} without being asked; it runs in an
environment of TRL's own. The checkpoint has no weights of the reference, which begins anew.
"""

import json
import sys
from pathlib import Path

from trl_step import say, trainer


def kl_by_step(settings, checkpoint=None):
    """Logged is the mean over tokens; a checkpoint brings the rows of the steps before it."""
    four = trainer(settings, max_steps=4, save_strategy="steps", save_steps=2)
    four.train(resume_from_checkpoint=checkpoint)
    rows = [row for row in four.state.log_history if "kl" in row]
    return [row["kl"] * row["completions/mean_length"] for row in rows]


settings = json.loads(sys.argv[1])
straight = kl_by_step(settings)
checkpoint = str(Path(settings["folder"]) / "checkpoint-2")
say({"straight": straight, "resumed": kl_by_step(settings, checkpoint)})
