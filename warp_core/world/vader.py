"""The judge that comes with the default world: it shares nothing with the reward model."""

import hashlib
import importlib.util
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from warp_core.world.assets import PREFIX, asset_path
from warp_core.world.prompts import Prompt, as_text

ASSET, PROGRAM = f"{PREFIX}vader", "vaderSentiment.py"


class Vader:
    """The rules and the lexicon of Hutto and Gilbert (2014): texts -> (B,), −1 (worst) to 1 (best).

    It is the program that its authors published; its lexicons lie beside it.

    Args:
        folder: of the program; None: the asset's.
    """

    def __init__(self, folder: Path | None = None) -> None:
        program = (folder or asset_path(ASSET)) / PROGRAM
        parts = [program, *sorted(program.parent.glob("*lexicon.txt"))]
        self.digest = hashlib.sha256(b"".join(part.read_bytes() for part in parts)).hexdigest()
        spec = importlib.util.spec_from_file_location(program.stem, program)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        self._analyzer = module.SentimentIntensityAnalyzer()

    def __call__(self, scored: Sequence[Prompt]) -> Tensor:
        scores = [self._analyzer.polarity_scores(as_text(each))["compound"] for each in scored]
        return torch.tensor(scores, dtype=torch.float64)
