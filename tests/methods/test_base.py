"""What every method shares."""

import json

import numpy as np

import bayesnn as bnn


def test_options_given_as_numpy_numbers_are_json() -> None:
    config = bnn.SGLD(lr=np.float32(0.5), draws=np.int64(7)).config()
    assert json.loads(json.dumps(config)) == config
    assert (config["lr"], config["draws"]) == (0.5, 7)
