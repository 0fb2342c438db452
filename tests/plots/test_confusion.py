import numpy as np
import pytest
import torch

from bayesnn import plots
from tests.plots.pictures import classification, draw


def test_cells_hold_the_counts():
    probs, y = classification(200, 3)
    ax = plots.confusion_matrix(probs, y, ["cat", "dog", "horse"])
    draw(ax)
    table = np.zeros((3, 3), dtype=int)
    np.add.at(table, (y.numpy(), probs.argmax(1).numpy()), 1)
    shown = {tuple(map(int, text.get_position()[::-1])): int(text.get_text()) for text in ax.texts}
    assert shown == {cell: count for cell, count in np.ndenumerate(table) if count}
    np.testing.assert_allclose(ax.get_images()[0].get_array(), table / table.sum(1, keepdims=True))
    assert ax.get_title() == f"accuracy {100 * np.trace(table) / 200:.1f} % of 200 rows"


def test_two_classes_may_be_one_probability_and_a_class_may_be_missing():
    ax = plots.confusion_matrix(torch.tensor([0.9, 0.8, 0.2]), torch.tensor([1, 1, 1]))
    draw(ax)
    np.testing.assert_allclose(ax.get_images()[0].get_array(), [[0, 0], [1 / 3, 2 / 3]])


def test_shapes_and_names_must_match():
    probs, y = classification(20, 3)
    with pytest.raises(ValueError, match="classes must be 3 names"):
        plots.confusion_matrix(probs, y, ["a", "b"])
    with pytest.raises(ValueError, match="one class for each of the 20 rows"):
        plots.confusion_matrix(probs, y[:5])
    for bad in (-1, 3):
        with pytest.raises(ValueError, match=r"classes in \[0, 3\)"):
            plots.confusion_matrix(probs, torch.where(y == 1, bad, y))
