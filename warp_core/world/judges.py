"""Judges: what scores texts beside the reward model, shares nothing with it, and is never trained on."""

import importlib.util
from collections.abc import Callable, Sequence

from warp_core.world.assets import PREFIX, asset_path

Judge = Callable[[Sequence[str]], list[float]]  # texts -> scores


def load_judge(name: str) -> Judge:
    """`vader`: the rules and the lexicon of Hutto and Gilbert (2014), −1 (worst) to 1 (best)."""
    return {"vader": _vader}[name]()


def _vader() -> Judge:
    """The program that its authors published; its lexicons lie beside it."""
    program = asset_path(f"{PREFIX}vader") / "vaderSentiment.py"
    spec = importlib.util.spec_from_file_location(program.stem, program)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    analyzer = module.SentimentIntensityAnalyzer()
    return lambda texts: [analyzer.polarity_scores(text)["compound"] for text in texts]
