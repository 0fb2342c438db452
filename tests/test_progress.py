import io
from dataclasses import replace

import pytest

from bayesnn.methods import Plan
from bayesnn.progress import Progress


@pytest.fixture
def screen(monkeypatch):
    written = io.StringIO()
    import tqdm.auto

    bar = tqdm.auto.tqdm
    monkeypatch.setattr(tqdm.auto, "tqdm", lambda **options: bar(**{**options, "file": written, "mininterval": 0.0}))
    return written


def plan():
    return Plan(num_data=10, batch_size=1, epochs=2, steps_per_epoch=10, chains=1, random_net=False)


def test_the_present_loss_is_shown_within_an_epoch(screen):
    with Progress(True, plan(), 0) as bar:
        for loss in (3.25, 2.125, 1.5):
            bar.step(loss)
    assert "loss=3.25" in screen.getvalue()
    assert "loss=1.5" in screen.getvalue().split("loss=3.25")[-1]


def test_the_validation_scores_of_the_last_epoch_stay_beside_it(screen):
    with Progress(True, plan(), 0) as bar:
        bar.epoch({"chain": 0, "epoch": 0, "loss": 9.0, "val_nll": 4.5})
        bar.step(0.75)
    last = screen.getvalue().split("\r")[-1]
    assert "chain 1/1 epoch 1" in last
    assert "loss=0.75, val_nll=4.5" in last


def test_between_two_drawings_nothing_is_formatted(monkeypatch):
    with Progress(True, plan(), 0) as bar:
        monkeypatch.setattr(bar._bar, "update", lambda n: None)  # tqdm did not draw
        monkeypatch.setattr(bar._bar, "set_postfix", lambda *_, **__: pytest.fail("formatted"))
        bar.step(1.0)


def test_off_it_writes_nothing(screen):
    with Progress(False, plan(), 0) as bar:
        bar.step(1.0)
        bar.epoch({"chain": 0, "epoch": 0, "loss": 1.0})
    assert screen.getvalue() == ""


@pytest.mark.parametrize(
    ("seconds", "epochs", "forecast"),
    [
        ([10.0], 2, "about 3 min 20 s for 1 chains x 2 epochs x 10 steps"),  # one long step tells
        ([1.0, *[0.5] * 4], 20, "about 1 min 40 s"),  # the first step warms up and does not count
        ([0.5, *[0.5] * 4], 2, None),  # 10 s: not long
        ([0.5], 2000, None),  # too early to tell
    ],
    ids=["one long step", "warm-up", "short run", "one short step"],
)
def test_the_forecast_goes_by_time_and_not_by_steps(seconds, epochs, forecast, screen, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("bayesnn.progress.time.perf_counter", lambda: now[0])
    with Progress(True, replace(plan(), epochs=epochs), 10) as bar:
        for step in seconds:
            now[0] += step
            bar.step(1.0)
    written = screen.getvalue()
    assert (forecast in written) if forecast else "about" not in written
    assert written.count("about") <= 1
