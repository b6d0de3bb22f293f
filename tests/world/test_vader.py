"""The second judge: the program of its authors, found beside its lexicons."""

from warp_core.world import vader

PROGRAM = """
import os, inspect

class SentimentIntensityAnalyzer:
    def __init__(self):
        folder = os.path.dirname(inspect.getsourcefile(lambda: 0))
        self.good = open(os.path.join(folder, "lexicon.txt")).read().split()

    def polarity_scores(self, text):
        return {"compound": float(sum(word in self.good for word in text.split())), "pos": 9.0}
"""


def test_vader_scores_each_text_by_its_compound(tmp_path, monkeypatch):
    (tmp_path / "vaderSentiment.py").write_text(PROGRAM)
    (tmp_path / "lexicon.txt").write_text("good great")
    asked = []
    monkeypatch.setattr(vader, "asset_path", lambda spec: asked.append(spec) or tmp_path)
    judge = vader.Vader()
    assert vader.Vader(tmp_path)(["good"]).tolist() == [1.0]
    said = [{"role": "user", "content": "a great"}, {"role": "assistant", "content": "good"}]
    assert judge(["a good film", "a film", said]).tolist() == [1.0, 0.0, 2.0]
    assert asked == ["asset:vader"]
