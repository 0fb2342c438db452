"""What every method shares."""

import json
from collections.abc import Callable

import numpy as np
import pytest

import bayesnn as bnn


def test_options_given_as_numpy_numbers_are_json() -> None:
    config = bnn.SGLD(lr=np.float32(0.5), draws=np.int64(7)).config()
    assert json.loads(json.dumps(config)) == config
    assert (config["lr"], config["draws"]) == (0.5, 7)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: bnn.MeanFieldVI(kl_weight="a"), "Expected kl_weight >= 0 and finite, got 'a'"),
        (lambda: bnn.MeanFieldVI(kl_weight=None), "Expected kl_weight >= 0 and finite, got None"),
        (lambda: bnn.MeanFieldVI(estimator=["local"]), r"Unknown estimator \['local'\]"),
        (lambda: bnn.MAP(optimizer=["adam"]), r"Unknown optimizer \['adam'\]"),
        (lambda: bnn.MAP(momentum=2), r"Expected momentum in \[0, 1\), got 2"),
        (lambda: bnn.SGLD(temperature="1"), "Expected temperature >= 0 and finite, got '1'"),
        (lambda: bnn.IVON(clip_radius=None), "Expected clip_radius > 0, got None"),
    ],
)
def test_options_of_another_type_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_every_cycle_has_draws() -> None:
    method = bnn.SGHMC(lr=0.1, cycles=7, warm_up=0.0, burn_in=0.0, thin=1)
    kept = method.kept_steps(100)
    assert sorted({(step - 1) // 14 for step in kept}) == list(range(7))


def test_mclmc_needs_steps_for_its_tuning() -> None:
    with pytest.raises(ValueError, match=r"Expected burn_in > warm_up \(0.1\), got 0.1: between them MCLMC is tuned"):
        bnn.MCLMC(burn_in=0.1, warm_up=0.1)
