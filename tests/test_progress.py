import io

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
        monkeypatch.setattr(bar._bar, "update", lambda: None)  # tqdm did not draw
        monkeypatch.setattr(bar._bar, "set_postfix", lambda *_, **__: pytest.fail("formatted"))
        bar.step(1.0)


def test_off_it_writes_nothing(screen):
    with Progress(False, plan(), 0) as bar:
        bar.step(1.0)
        bar.epoch({"chain": 0, "epoch": 0, "loss": 1.0})
    assert screen.getvalue() == ""
