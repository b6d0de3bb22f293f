"""The state of a run in progress: what comes back, when it is saved, and what a kill leaves of it."""

import os
import signal
import sys
from pathlib import Path

import pytest
import torch

from warp_core.store.checkpoint import STATE, STEPS, Checkpoint
from warp_core.store.errors import StorageError, TrainingError
from warp_core.store.files import SUMS, read_jsonl, verify, write_jsonl
from warp_core.store.signals import held_back


def at(t):
    """A state behind step t, of several depths and types."""
    return {
        "policy": {"layers.0.w": torch.full((2, 3), float(t)).T, "n.bias": torch.tensor([t])},
        "adam": {"0": {"step": torch.tensor(float(t)), "m": torch.ones(2).bfloat16() * t}},
        "random": torch.arange(t, dtype=torch.uint8),
        "t": torch.tensor(t),
    }


def same(state, other):
    if isinstance(state, torch.Tensor):
        return state.dtype == other.dtype and torch.equal(state, other)
    return state.keys() == other.keys() and all(same(state[key], other[key]) for key in state)


class Run:
    """Steps that count themselves."""

    def __init__(self, folder, steps=10, every=3):
        self.checkpoint = Checkpoint(folder, steps, every)
        self.state = self.checkpoint.restore()
        self.t = int(self.state["t"]) if self.state else 0
        self.folder, self.whole = folder, True

    def go(self, steps, meanwhile=lambda: None):
        state = self.current
        with self.checkpoint.kept_if_interrupted(lambda: state() if self.whole else None):
            for _ in range(steps):
                with self.checkpoint.step({"step": self.t + 1}, state):
                    meanwhile()
                    self.t += 1
        return self

    def current(self):
        return at(self.t)

    def kept(self):
        """Steps of which a state is there."""
        return sorted(int(path.name[5:]) for path in self.folder.glob("step_*"))

    def rows(self):
        return [row["step"] for row in self.checkpoint.rows()]


def test_a_run_that_was_never_begun_begins(tmp_path):
    run = Run(tmp_path / "deep" / "run")
    assert run.state is None
    assert (run.checkpoint.t, run.rows(), run.kept()) == (0, [], [])


@pytest.mark.parametrize("t", [1, 3, 5])
def test_a_saved_state_comes_back_bit_for_bit_with_the_steps_up_to_it(t, tmp_path):
    Run(tmp_path, every=t).go(t + 2)
    run = Run(tmp_path)
    assert same(run.state, at(t * ((t + 2) // t)))
    assert run.rows() == list(range(1, run.t + 1))
    assert run.checkpoint.t == run.t == run.kept()[0]
    run.go(2)
    assert run.rows() == list(range(1, run.t + 1))


def test_a_state_that_is_in_use_can_be_removed_on_a_network_file_system(tmp_path):
    """Which keeps a file that is mapped, under another name, and its folder with it."""
    Run(tmp_path).go(3)
    run = Run(tmp_path)
    assert run.state is not None
    assert STATE not in Path("/proc/self/maps").read_text()


def test_states_are_saved_every_so_many_steps_one_at_a_time_and_none_at_the_end(tmp_path):
    run = Run(tmp_path, steps=9, every=3)
    kept = [run.go(1).kept() for _ in range(9)]
    assert kept == [[], [], [3], [3], [3], [6], [6], [6], [6]]
    assert read_jsonl(tmp_path / "step_6" / STEPS) == [{"step": step} for step in range(1, 7)]
    verify(tmp_path / "step_6", STATE, STEPS)


def test_without_an_interval_nothing_is_saved(tmp_path):
    assert Run(tmp_path, every=0).go(9).kept() == []
    run = Run(tmp_path)
    assert run.state is None
    assert run.rows() == []  # of steps that nothing is left of


def test_rows_behind_the_state_and_half_a_row_are_forgotten(tmp_path):
    run = Run(tmp_path).go(5)
    with run.checkpoint.log.open("a") as log:
        log.write('{"step": 6, "rew')
    assert Run(tmp_path).rows() == [1, 2, 3]


# Interrupted


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_waits_for_the_end_of_the_step_and_then_its_state_is_saved(number, tmp_path):
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        run = Run(tmp_path, every=0).go(3)
        with pytest.raises(KeyboardInterrupt):
            run.go(3, lambda: os.kill(os.getpid(), number))
    finally:
        signal.signal(signal.SIGTERM, before)
    assert (run.t, run.rows(), run.kept()) == (4, [1, 2, 3, 4], [4])
    assert same(Run(tmp_path).state, at(4))


def test_a_step_that_failed_is_no_step_and_the_state_before_it_is_kept(tmp_path):
    def diverged():
        raise TrainingError("the loss is not finite")

    run = Run(tmp_path, every=0).go(2)
    with pytest.raises(TrainingError) as caught:
        run.go(1, diverged)
    assert str(caught.value) == "the loss is not finite. The state behind step 2 is kept"
    assert (run.rows(), run.kept()) == ([1, 2], [2])


def test_weights_that_a_failed_update_has_spoilt_are_not_saved(tmp_path):
    run = Run(tmp_path, every=2).go(3)
    run.whole = False

    def diverged():
        raise TrainingError("a weight is not finite")

    with pytest.raises(TrainingError, match=r"finite\. The state behind step 2 is kept$"):
        run.go(1, diverged)
    assert run.kept() == [2]
    nothing_saved = Run(tmp_path / "other", every=0)
    nothing_saved.whole = False
    with pytest.raises(TrainingError, match=r"^a weight is not finite$"):
        nothing_saved.go(1, diverged)


def test_what_is_saved_already_is_not_saved_again(tmp_path, monkeypatch):
    first = Run(tmp_path).go(3)
    monkeypatch.setattr(Checkpoint, "save", lambda *_: pytest.fail("saved again"))
    for run in (first, Run(tmp_path)):
        with pytest.raises(KeyboardInterrupt), run.checkpoint.kept_if_interrupted(run.current):
            raise KeyboardInterrupt


# Killed while it saved, damaged, without room


def test_the_state_before_stays_until_the_new_one_is_whole(tmp_path, monkeypatch):
    run = Run(tmp_path, every=0).go(2)
    run.checkpoint.save(at(2))
    rename, whole = Path.rename, tmp_path / "step_4"

    def killed_before(source, target):
        if target == whole:
            raise SystemExit
        return rename(source, target)

    run.go(2)
    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", killed_before)
        with pytest.raises(SystemExit):
            run.checkpoint.save(at(4))
    assert run.kept() == [2]
    with monkeypatch.context() as patch:  # killed before it removed the old one
        patch.setattr(Checkpoint, "_steps", lambda _: sys.exit())
        with pytest.raises(SystemExit):
            run.checkpoint.save(at(4))
    assert run.kept() == [2, 4]
    assert same(Run(tmp_path).state, at(4))


def test_what_a_killed_process_had_begun_to_save_is_removed(tmp_path):
    """Each would be three copies of the weights."""
    Run(tmp_path).go(3)
    (tmp_path / ".step_6-abcd1234.tmp" / "model").mkdir(parents=True)
    (tmp_path / ".step_6-abcd1234.tmp" / "model" / STATE).write_text("half")
    Run(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"step_3", STEPS}


@pytest.mark.parametrize("file", [STATE, STEPS])
@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_bytes(b"")])
def test_a_damaged_state_is_named_and_the_one_before_it_counts(file, spoil, tmp_path):
    run = Run(tmp_path, every=0).go(2)
    run.checkpoint.save(at(2))
    (tmp_path / "step_2").rename(tmp_path / "aside")
    run.go(2)
    run.checkpoint.save(at(4))
    (tmp_path / "aside").rename(tmp_path / "step_2")
    spoil(tmp_path / "step_4" / file)
    with pytest.warns(
        UserWarning, match=rf"passed over, and computed anew: {tmp_path}/step_4/{file}"
    ):
        run = Run(tmp_path)
    assert same(run.state, at(2))
    assert run.rows() == [1, 2]
    run.go(2)
    run.checkpoint.save(at(4))
    assert run.kept() == [4]
    verify(tmp_path / "step_4", STATE, STEPS)
    spoil(tmp_path / "step_4" / file)
    with pytest.warns(UserWarning, match="passed over"):
        run = Run(tmp_path)
    assert run.state is None
    assert run.rows() == []


def test_a_state_without_its_checksums_does_not_count(tmp_path):
    (Run(tmp_path).go(3).folder / "step_3" / SUMS).unlink()
    with pytest.warns(UserWarning, match="passed over"):
        assert Run(tmp_path).state is None


def test_a_state_that_does_not_fit_is_refused_with_its_bytes_and_the_old_one_stays(
    tmp_path, monkeypatch
):
    run = Run(tmp_path).go(5)
    free = "warp_core.store.files.shutil.disk_usage"
    monkeypatch.setattr(free, lambda _: type("Usage", (), {"free": 10}))
    size = sum(w.nbytes for w in (*at(6)["policy"].values(), *at(6)["adam"]["0"].values())) + 6 + 8
    with pytest.raises(StorageError, match=rf"step_6: {size} bytes .* 10 bytes are free"):
        run.go(1)
    assert run.kept() == [3]


def test_a_log_is_of_lines(tmp_path):
    run = Run(tmp_path)
    write_jsonl(run.checkpoint.log, [{"step": 1}])
    run.checkpoint.append({"step": 2, "stopped": True})
    assert run.checkpoint.rows() == [{"step": 1}, {"step": 2, "stopped": True}]


def fails_when_interrupted():
    with held_back():
        signal.raise_signal(signal.SIGINT)
        raise ValueError("said so")


def test_a_signal_is_not_lost_where_what_it_waits_for_fails():
    with pytest.raises(KeyboardInterrupt) as caught:
        fails_when_interrupted()
    assert isinstance(caught.value.__context__, ValueError)
