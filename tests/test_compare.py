import csv
import io
import json
import math

import numpy as np
import pytest
import torch

import bayesnn as bnn
from bayesnn.compare import compare
from bayesnn.compare_setup import NETS, named_settings, shuffle_pixels
from bayesnn.comparison import score

EPOCHS = 6  # SGLD keeps the draws that the pictures of its chains need


def flat(data):
    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, data.num_outputs))


def is_png(path):
    from matplotlib.image import imread

    return imread(path).shape[0] > 100  # decodes every row


@pytest.fixture(scope="module")
def digits():
    train, test = bnn.data.load("digits")
    return train.subset(range(150)), test.subset(range(60))


@pytest.fixture(scope="module")
def two_nets(digits, tmp_path_factory):
    out = tmp_path_factory.mktemp("digits")
    result = compare(digits, ("mlp", flat), epochs=EPOCHS, seeds=(3, 4), out=out, progress=False)
    return result, out


def test_rows_are_the_scores_of_the_posterior_with_the_same_seed(two_nets, digits):
    result, _ = two_nets
    train, test = digits
    for name, (method, chains) in named_settings().items():
        row = next(r for r in result.rows if (r["net"], r["method"], r["seed"]) == ("mlp", name, 3))
        model = bnn.BayesianModel(NETS["mlp"](train), bnn.priors.Layerwise(gain=3.0), bnn.likelihoods.Categorical())
        posterior = bnn.fit(
            model, train, method, epochs=EPOCHS, chains=chains, seed=3, validation=0.1, batch_size=64, progress=False
        )
        expected = bnn.metrics.classification_table(posterior.predict(test.x).mean, test.y)
        assert {key: row[key] for key in expected} == expected
        steps = chains * EPOCHS * math.ceil(135 / 64)
        assert row["gradient_evaluations"] == sum(posterior.info["gradient_evaluations"])
        # SGLD finds its step size from gradients of its own.
        assert row["gradient_evaluations"] > steps if name == "sgld" else row["gradient_evaluations"] == steps
        assert row["seconds"] > 0


def test_every_net_method_and_seed_has_one_row_and_only_the_first_seed_is_kept(two_nets):
    result, _ = two_nets
    keys = [(row["seed"], row["net"], row["method"]) for row in result.rows]
    assert keys == [(s, n, m) for s in (3, 4) for n in ("mlp", "flat") for m in ("map", "ensemble", "vi", "sgld")]
    assert {one.posterior.info["seed"] for one in result.fitted.values()} == {3}
    assert len(result.fitted) == 8


def test_table_shows_mean_and_standard_error_and_is_aligned(two_nets):
    result, _ = two_nets
    lines = result.table().splitlines()
    assert len(lines) == 2 + 8
    assert len({len(line) for line in lines}) == 1
    assert [cell.strip() for cell in lines[0].split("|")[1:5]] == ["net", "method", "accuracy ↑", "NLL ↓"]
    values = [row["nll"] for row in result.rows if (row["net"], row["method"]) == ("flat", "vi")]
    cell = next(line for line in lines if "flat" in line and " vi " in line).split("|")[4].strip()
    assert cell == f"{np.mean(values):.3f} ± {np.std(values, ddof=1) / np.sqrt(2):.3f}"


def test_json_holds_rows_and_settings(two_nets):
    result, out = two_nets
    read = json.loads(result.to_json())
    assert read == json.loads((out / "results.json").read_text())
    assert read["rows"] == result.rows
    assert read["seeds"] == [3, 4]
    assert read["epochs"] == EPOCHS
    assert read["methods"]["ensemble"] == {**bnn.MAP().config(), "chains": 5}
    assert read["prior"] == bnn.priors.Layerwise(gain=3.0).config()
    assert read["versions"]["torch"] == torch.__version__


def test_csv_is_the_rows(two_nets):
    result, out = two_nets
    text = (out / "results.csv").read_text()
    assert text == result.to_csv()
    read = list(csv.DictReader(io.StringIO(text)))
    assert list(read[0]) == ["net", "method", "seed", "epochs", *result.columns, "error"]
    for line, row in zip(read, result.rows, strict=True):
        assert (line["net"], line["method"], line["seed"]) == (row["net"], row["method"], str(row["seed"]))
        assert {key: float(line[key]) for key in ("epochs", *result.columns)} == {
            key: row[key] for key in ("epochs", *result.columns)
        }


def test_inputs_from_elsewhere_are_scored_by_their_entropy(two_nets, digits):
    result, _ = two_nets
    fitted = result.fitted["mlp", "sgld"]
    outside = fitted.posterior.predict(shuffle_pixels(digits[1].x)).total
    row = next(r for r in result.rows if (r["net"], r["method"], r["seed"]) == ("mlp", "sgld", 3))
    assert row["ood_auroc"] == bnn.metrics.auroc(fitted.total, outside)
    assert "OOD AUROC ↑" in result.table()


def test_shifted_images_are_scored_in_pixels_and_the_same_for_all(digits, tmp_path):
    result = compare(digits, flat, ("map", "sgld"), epochs=4, seeds=(0, 1), shifts=True, out=tmp_path, progress=False)
    assert len(result.shifted) == 2 * 2 * len(bnn.data.SHIFTS) * 6  # methods, seeds, kinds, severities
    train, test = digits
    pixels, top = test.inputs.inverse(test.x), float(train.inputs.inverse(train.x).max())
    assert top == pytest.approx(1.0)
    posterior = result.fitted["flat", "sgld"].posterior
    for row in result.shifted:
        if (row["method"], row["seed"]) != ("sgld", 0) or row["severity"] not in (0, 3):
            continue
        moved = bnn.data.shift(pixels, row["kind"], row["severity"])
        expected = bnn.metrics.classification_table(posterior.predict(test.inputs.forward(moved)).mean, test.y)
        # The range of the pixels went through the standardisation and back.
        assert {key: row[key] for key in expected} == pytest.approx(expected, abs=1e-4)
    assert json.loads((tmp_path / "results.json").read_text())["shifted"] == result.shifted
    read = list(csv.DictReader((tmp_path / "shifts.csv").open()))
    assert [float(line["nll"]) for line in read] == [row["nll"] for row in result.shifted]
    assert is_png(tmp_path / "shift_curves.png")
    assert is_png(tmp_path / "shift_kinds.png")
    page = (tmp_path / "report.html").read_text()
    assert page.count("<img ") == len(list(tmp_path.glob("*.png")))
    assert "When the images change" in page


def test_shifts_of_what_are_no_images_are_refused():
    with pytest.raises(
        ValueError, match=r"Expected images \(C, H, W\) of classes for shifts, got inputs of shape \(2,\)"
    ):
        compare("moons", epochs=1, shifts=True, progress=False)


def test_a_name_that_no_file_can_have_is_no_hindrance(tmp_path):
    result = compare("moons", linear, {"a/b": bnn.SGLD(), "c": bnn.SGLD()}, epochs=8, progress=False)
    names = {path.name for path in result.save(tmp_path)}
    assert {"traces_a_b.png", "traces_c.png"} <= names


def test_saved_folder_has_the_table_and_a_picture_of_each_kind_for_each_net(two_nets):
    result, out = two_nets
    assert result.table() in (out / "table.md").read_text()
    expected = {
        "training_curves", "cost", "reliability", "accuracy_rejection", "confusion", "entropy", "certainty", "traces",
        "rhat",
    }  # fmt: skip
    for net in ("mlp", "flat"):
        assert {path.stem for path in (out / net).iterdir()} == expected
        assert all(is_png(path) for path in (out / net).iterdir())


def test_regression_scores_and_band(tmp_path):
    result = compare("sine-gap", methods=("map", "sgld"), epochs=30, out=tmp_path, progress=False)
    fitted, test = result.fitted["mlp", "sgld"], result.test
    row = result.rows[1]
    predictive = fitted.posterior.predict(test.x)
    lower, upper = predictive.quantile((0.05, 0.95))
    assert row["rmse"] == pytest.approx(float((predictive.mean - test.y).square().mean().sqrt()), rel=1e-5)
    assert row["nll"] == pytest.approx(-float(predictive.log_prob(test.y).mean()), rel=1e-5)
    assert row["coverage"] == float(((lower <= test.y) & (test.y <= upper)).double().mean())
    # CRPS of samples of the same mixture with another seed: the two agree to the Monte-Carlo error of 1,000 samples.
    samples = predictive.sample(1000, seed=1)
    error = float(samples.std(0).mean()) / math.sqrt(1000)
    assert row["crps"] == pytest.approx(bnn.metrics.crps_samples(samples, test.y), abs=5 * error)
    assert {path.name for path in tmp_path.iterdir()} == {
        "table.md", "results.json", "results.csv", "report.html",
        "training_curves.png", "cost.png", "band.png", "traces.png", "rhat.png",
    }  # fmt: skip
    assert is_png(tmp_path / "band.png")


def test_score_of_targets_in_a_column_is_that_of_the_same_targets_in_a_row():
    x, y = torch.randn(30, 2), torch.randn(30)
    model = bnn.BayesianModel(torch.nn.Linear(2, 1), likelihood=bnn.likelihoods.Normal())
    predictive = bnn.fit(model, (x, y), epochs=2, progress=False).predict(x)
    assert score(predictive, y[:, None], "real") == score(predictive, y, "real")


def test_methods_and_nets_of_ones_own(digits):
    methods = {"sgd": bnn.MAP(optimizer="sgd", lr=0.1), "three": (bnn.MAP(), 3)}
    result = compare(digits, flat, methods, epochs=2, validation=None, progress=False)
    assert [(row["net"], row["method"]) for row in result.rows] == [("flat", "sgd"), ("flat", "three")]
    assert [one.posterior.num_chains for one in result.fitted.values()] == [1, 3]
    assert result.rows[0]["gradient_evaluations"] == 2 * math.ceil(150 / 64)


def test_default_budget_is_the_same_number_of_steps_whatever_the_batch(digits, monkeypatch):
    seen = []

    def stop(model, data, method, *, epochs, **_):
        seen.append(epochs)
        raise bnn.DivergedError("stop here")

    monkeypatch.setitem(compare.__globals__, "fit", stop)
    for batch_size in (135, 27, None):
        with pytest.warns(UserWarning, match="stop here"):
            compare(digits, "mlp", ("map",), batch_size=batch_size, progress=False)
    assert seen == [1250, 250, 1250]


def test_a_method_that_diverges_does_not_take_the_others_with_it(digits, tmp_path):
    methods = {"wild": bnn.SGLD(lr=1e6, warm_up=0.0), "map": (bnn.MAP(), 1)}
    with pytest.warns(UserWarning, match="mlp, wild, seed 0: ") as caught:
        result = compare(digits, "mlp", methods, epochs=2, progress=False)
    assert all(str(w.message).startswith("mlp, wild, seed 0: ") and w.filename == __file__ for w in caught)
    assert "Expected a finite loss" in str(caught[-1].message)
    assert "failed" in result.table().splitlines()[2]
    assert json.loads(result.to_json())["rows"][0]["nll"] is None
    assert result.rows[1]["accuracy"] > 0.1
    result.save(tmp_path)
    assert is_png(tmp_path / "reliability.png")


def linear(data):
    return torch.nn.Linear(data.in_shape[0], data.num_outputs)


@pytest.mark.parametrize("where", ["net", "fit", "score"])
def test_ctrl_c_anywhere_leaves_what_was_complete(where, monkeypatch, tmp_path):
    calls = []

    def press(function):
        def wrapped(*args, **kwargs):
            calls.append(1)
            if len(calls) == 2:
                raise KeyboardInterrupt
            return function(*args, **kwargs)

        return wrapped

    make = press(linear) if where == "net" else linear
    if where != "net":
        monkeypatch.setitem(compare.__globals__, where, press(compare.__globals__[where]))
    methods = {name: bnn.MAP() for name in ("first", "second", "third")}
    result = compare("moons", make, methods, epochs=1, out=tmp_path, progress=False)
    assert result.interrupted
    assert [row["method"] for row in result.rows] == ["first"]
    assert list(result.fitted) == [(make.__name__, "first")]
    assert json.loads((tmp_path / "results.json").read_text())["interrupted"] is True


class Breaks(torch.nn.Module):
    """A linear net whose forward pass fails for good after ``LAST`` passes in train mode, over all copies of it."""

    LAST = 0

    def __init__(self, data):
        super().__init__()
        self.layer = torch.nn.Linear(2, data.num_outputs)

    def forward(self, x):
        if self.training:
            Breaks.LAST -= 1
            if Breaks.LAST < 0:
                raise RuntimeError("the disk is full")
        return self.layer(x)


@pytest.mark.parametrize("method", [bnn.MAP(), bnn.SGLD(), bnn.SGLD(lr=0.01, warm_up=0.0, burn_in=0.0, thin=1)])
def test_an_error_in_mid_run_costs_the_row_and_not_the_comparison(method, monkeypatch, tmp_path):
    """Without a draw ``fit`` raises it, with draws it returns them, short of the budget of the others."""
    monkeypatch.setattr(Breaks, "LAST", 10**9)
    steps = 2 * 7  # of two epochs
    fit = compare.__globals__["fit"]

    def breaking(model, data, chosen, **options):
        Breaks.LAST = steps - 3 if chosen is method else 10**9
        return fit(model, data, chosen, **options)

    monkeypatch.setitem(compare.__globals__, "fit", breaking)
    methods = {"first": bnn.MAP(lr=0.1), "second": method, "third": bnn.MAP(lr=0.2)}
    with pytest.warns(UserWarning, match="second, seed 0: .*the disk is full"):
        result = compare("moons", Breaks, methods, epochs=2, out=tmp_path, progress=False)
    assert not result.interrupted
    assert [math.isnan(row["nll"]) for row in result.rows] == [False, True, False]
    assert "failed" in result.table().splitlines()[3]
    assert list(result.fitted) == [("Breaks", "first"), ("Breaks", "third")]
    rows = json.loads((tmp_path / "results.json").read_text())["rows"]
    assert [row.get("error") for row in rows] == [None, "the disk is full", None]


def test_an_error_before_anything_is_complete_is_raised(monkeypatch):
    monkeypatch.setattr(Breaks, "LAST", 5)
    with pytest.raises(RuntimeError, match="the disk is full"):
        compare("moons", Breaks, {"first": bnn.MAP()}, epochs=2, progress=False)


def test_a_share_may_be_numpys():
    result = compare("moons", linear, ("map",), epochs=1, validation=np.float32(0.5), progress=False)
    assert json.loads(result.to_json())["validation"] == 0.5


@pytest.mark.parametrize("inside", [False, True])
def test_a_file_where_the_folder_should_be_is_refused_before_fitting(inside, digits, tmp_path, monkeypatch):
    monkeypatch.setitem(compare.__globals__, "fit", lambda *_, **__: pytest.fail("fitted"))
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    with pytest.raises(ValueError, match=r"Expected a folder in out, got .*notes.txt is a file: name another"):
        compare(digits, "mlp", ("map",), out=file / "results" if inside else file, progress=False)
    assert file.read_text() == "mine"


def test_shuffled_images_keep_their_pixels_and_lose_their_places():
    x = torch.arange(2 * 3 * 4 * 4.0).reshape(2, 3, 4, 4)
    shuffled = shuffle_pixels(x)
    assert torch.equal(shuffled.flatten(2).sort(2).values, x.flatten(2))
    assert torch.equal(shuffled[:, 0] - x[:, 0, :1, :1], shuffled[:, 1] - x[:, 1, :1, :1])  # channels move together
    order = shuffled[:, 0].flatten(1).argsort(1)
    assert not torch.equal(order[0], order[1])
    assert torch.equal(shuffle_pixels(x), shuffled)


def test_ood_is_what_was_given(digits):
    x = torch.zeros(7, 1, 8, 8)
    result = compare(digits, "mlp", ("map",), epochs=1, ood=x, progress=False)
    assert result.ood[0] == "other inputs"
    assert torch.equal(result.ood[1], x)
    with pytest.raises(ValueError, match=r"Expected ood inputs of shape \(1, 8, 8\), got \(3,\)"):
        compare(digits, "mlp", ("map",), epochs=1, ood=torch.zeros(2, 3), progress=False)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"methods": ("sgdl",)}, ValueError, "Unknown method 'sgdl': did you mean 'sgld'"),
        ({"methods": "sgld"}, TypeError, "Expected a sequence of method names, got the string 'sgld'"),
        ({"methods": ()}, ValueError, "Expected at least one method, got none"),
        ({"methods": ("map", "vi", "map")}, ValueError, "Expected each method once, got 'map' twice"),
        ({"net": ("mlp", "lenet5", "mlp")}, ValueError, "Expected nets of different names, got 'mlp' twice"),
        ({"net": (lambda data: 1, lambda data: 2)}, ValueError, "different names, got 'lambda' twice"),
        ({"net": "lenet"}, ValueError, "Unknown net 'lenet': did you mean 'lenet5'"),
        ({"net": torch.nn.Linear(2, 2)}, TypeError, "Expected a function from data to a net, got Linear"),
        ({"seeds": (1, 1)}, ValueError, r"Expected seeds, each once, got \[1, 1\]"),
        ({"data": torch.zeros(3)}, TypeError, "Expected a name or .* got Tensor"),
        ({"data": "digit"}, ValueError, "Unknown data set 'digit': did you mean 'digits'"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(digits, options, error, message):
    with pytest.raises(error, match=message) as caught:
        compare(**{"data": digits, "epochs": 1, "progress": False, **options})
    assert "\n" not in str(caught.value)


def test_numpy_numbers_and_ranges_are_numbers(tmp_path):
    result = compare("moons", linear, ["map"], epochs=np.int64(1), batch_size=np.int64(32), seeds=range(2),
                     out=tmp_path, progress=False)  # fmt: skip
    assert json.loads((tmp_path / "results.json").read_text())["epochs"] == 1
    assert "seeds=(0, 1)" in result.settings["call"]


def test_a_method_that_fails_with_one_seed_of_three_keeps_its_mean_and_its_pictures(monkeypatch, tmp_path):
    fit = compare.__globals__["fit"]

    def fails(model, train, method, *, seed, **how):
        if seed == 0 and isinstance(method, bnn.MeanFieldVI):
            raise bnn.errors.DivergedError("a loss that became NaN")
        return fit(model, train, method, seed=seed, **how)

    monkeypatch.setitem(compare.__globals__, "fit", fails)
    with pytest.warns(UserWarning, match="became NaN"):
        result = compare("moons", linear, ["map", "vi"], epochs=2, seeds=(0, 1, 2), out=tmp_path, progress=False)
    line = next(line for line in result.table().splitlines() if line.startswith("| vi"))
    nll = [row["nll"] for row in result.rows if row["method"] == "vi"][1:]
    assert f"{sum(nll) / 2:.3f} ± " in line
    assert "(2 of 3)" in line
    assert {method for _, method in result.fitted} == {"map", "vi"}


def test_an_error_of_scoring_costs_one_row_and_one_of_drawing_none(monkeypatch, tmp_path):
    score = compare.__globals__["score"]
    calls = []

    def breaks(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("no such score")
        return score(*arguments)

    monkeypatch.setitem(compare.__globals__, "score", breaks)
    with pytest.warns(UserWarning, match="no such score"):
        result = compare("moons", linear, ["map", "vi"], epochs=1, progress=False)
    assert [row.get("error") for row in result.rows] == [None, "no such score"]
    monkeypatch.setattr("bayesnn.report.plots.reliability", lambda *_: 1 / 0)
    with pytest.warns(UserWarning, match=r"Not all of the report could be written to .*division by zero"):
        result = compare("moons", linear, ["map"], epochs=1, out=tmp_path, progress=False)
    assert len(result.rows) == 1
    assert (tmp_path / "results.json").is_file()


def test_two_real_targets_are_named_as_such():
    from bayesnn.report import four_predictions

    x, y = torch.randn(40, 3), torch.randn(40, 2)
    parts = (bnn.data.Data(x[:30], y[:30]), bnn.data.Data(x[30:], y[30:]))
    result = compare(parts, lambda data: torch.nn.Linear(3, 2), {"s": (bnn.SGLD(draws=4), 2)}, epochs=5, progress=False)
    names = four_predictions(result, next(iter(result.fitted.values())))[2]
    assert all(name.endswith("mean, first target") for name in names)


def test_methods_whose_names_make_one_file_name_have_two(tmp_path):
    methods = {"lr=1/2": (bnn.SGLD(draws=4), 2), "lr=1:2": (bnn.SGLD(draws=4), 2)}
    result = compare("moons", linear, methods, epochs=3, progress=False)
    paths = result.save(tmp_path)
    assert len(set(paths)) == len(paths)
    assert {"traces_lr=1_2.png", "traces_lr=1_2~2.png"} <= {path.name for path in paths}


def test_soft_labels_are_for_the_training_part():
    stream = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 2, generator=stream), torch.rand(12, 3, generator=stream).softmax(1)
    train, soft, hard = (bnn.data.Data.of(x, targets, "soft") for targets in (y, y, y.argmax(1)))
    options = {"net": "mlp", "methods": ["map"], "likelihood": bnn.likelihoods.Categorical(), "epochs": 1}
    with pytest.raises(ValueError, match=r"soft labels in the test part: give it y\.argmax\(1\)"):
        compare((train, soft), **options, progress=False)
    assert 0 <= compare((train, hard), **options, progress=False).rows[0]["accuracy"] <= 1
