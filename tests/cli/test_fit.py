import json
import sys

import numpy as np
import pytest
import torch

import bayesnn as bnn
from bayesnn.cli import _runs
from bayesnn.cli._named import METHODS, build_net, method_named, net_options, prior_named
from bayesnn.compare_setup import NETS, named_settings


def test_it_is_the_fit_of_the_library(moons):
    train, test = bnn.data.load("moons")
    model = bnn.BayesianModel(bnn.nets.MLP(2, (5,), 2), likelihood=bnn.likelihoods.Categorical())
    same = {"chains": 2, "seed": 3, "validation": 0.1, "epochs": 4, "batch_size": 100, "progress": False}
    posterior = bnn.fit(model, train, bnn.SGLD(draws=10), **same)
    loaded = _runs.load(moons).posterior
    for mine, theirs in zip(posterior.states(), loaded.states(), strict=True):
        for one, other in zip(mine, theirs, strict=True):
            assert all(torch.equal(one[name], other[name]) for name in one)
    written = json.loads((moons / "run.json").read_text())
    assert written["scores"]["accuracy"] == bnn.metrics.accuracy(posterior.predict(test.x).mean, test.y)
    assert written["classes"] == ["upper", "lower"]
    assert written["versions"]["bayesnn"] == bnn.__version__


def test_no_file_of_a_run_is_a_pickle(moons):
    assert {path.suffix for path in moons.iterdir()} == {".json", ".safetensors"}


def test_scores_are_printed(run, tmp_path):
    out = tmp_path / "run"
    result = run("fit", "diabetes", "--method", "map", "--epochs", "1", "--out", out, "--no-progress")
    scores = json.loads((out / "run.json").read_text())["scores"]
    assert f"88 test rows: rmse {scores['rmse']:.4g}, nll {scores['nll']:.4g}" in result.stdout
    assert result.stderr == ""


def test_a_run_is_not_overwritten_without_force(run, refused, tmp_path):
    out, other = tmp_path / "run", tmp_path / "other"
    arguments = ("fit", "moons", "--method", "map", "--epochs", "1", "--no-progress")
    assert run(*arguments, "--out", out).exit_code == 0
    before = (out / "run.json").read_text()
    assert "overwrite by --force" in refused(*arguments, "--out", out, "--seed", "1")
    assert (out / "run.json").read_text() == before
    assert run(*arguments, "--out", out, "--seed", "1", "--force").exit_code == 0
    assert json.loads((out / "run.json").read_text())["settings"]["seed"] == 1
    other.mkdir()
    (other / "thesis.tex").write_text("mine")
    assert "other files in it" in refused(*arguments, "--out", other, "--force")
    assert "is a file" in refused(*arguments, "--out", other / "thesis.tex", "--force")
    assert [path.name for path in other.iterdir()] == ["thesis.tex"]


def test_a_file_has_the_columns_and_statistics_of_its_training_part(priced, houses):
    loaded = _runs.load(priced)
    assert loaded.columns == ("area", "age")
    source = loaded.data()
    assert (len(source.train), len(source.test)) == (48, 12)
    x = source.train.inputs.inverse(source.train.x)
    rows = torch.cat([torch.cat([x, source.test.inputs.inverse(source.test.x)]), prices(source)[:, None]], 1)
    read = [list(map(float, line.split(",")[1:])) for line in houses.read_text().splitlines()[1:]]
    assert rows[rows[:, 0].argsort()].numpy() == pytest.approx(np.array(sorted(read)))
    assert torch.allclose(x.mean(0), loaded.inputs.mean)
    assert torch.allclose(x.std(0, correction=0), loaded.inputs.std)
    assert loaded.posterior.target.mean == pytest.approx(float(source.train.y.mean()))
    assert loaded.posterior.num_chains == 5


def prices(source):
    return torch.cat([source.train.y, source.test.y])


def test_text_makes_classes(run, iris, tmp_path):
    out = tmp_path / "run"
    arguments = ("--target", "species", "--method", "MAP", "--epochs", "1", "--test-fraction", "0", "--no-progress")
    result = run("fit", iris, *arguments, "--out", out)
    assert result.exit_code == 0
    assert "test rows" not in result.stdout
    loaded = _runs.load(out)
    assert loaded.classes == ("setosa", "versicolor", "virginica")
    assert loaded.posterior.num_data == 150


def test_every_method_has_its_name():
    for name, cls in METHODS.items():
        for text in (name, name.lower(), name.upper()):
            method, chains = method_named(text)
            assert (method, chains) == (cls(), cls.default_chains)
    for name, setting in named_settings().items():
        assert method_named(name) == setting
    assert method_named("sghmc:temperature=0.5,draws=7,layerwise=true,schedule=cosine,lr=0.1")[0] == bnn.SGHMC(
        temperature=0.5, draws=7, layerwise=True, schedule="cosine", lr=0.1
    )
    assert method_named("vi", lr=0.5)[0] == bnn.MeanFieldVI(lr=0.5)


def test_priors_have_their_names():
    assert prior_named(None) is None
    assert prior_named("student-t:df=4") == bnn.priors.StudentT(df=4)
    assert prior_named("Layerwise:rule=kaiming,gain=2") == bnn.priors.Layerwise("kaiming", gain=2)


@pytest.mark.parametrize(("name", "data"), [("mlp", "digits"), ("lenet5", "digits"), ("convnet", "digits")])
def test_nets_are_those_of_compare(name, data):
    train, _ = bnn.data.load(data)
    shapes = [
        {key: value.shape for key, value in net.state_dict().items()}
        for net in (NETS[name](train), build_net(net_options(name, train, None, 0.0)))
    ]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize("method", ["mcdropout", "laplace", "swag"])
def test_methods_that_need_more_than_a_name(run, tmp_path, method):
    out = tmp_path / "run"
    few = ("--method", method, "--dropout", "0.2", "--widths", "4", "--epochs", "4", "--no-progress")
    if method != "mcdropout":
        few = tuple(each for each in few if each not in ("--dropout", "0.2"))
    assert run("fit", "moons", *few, "--out", out).exit_code == 0
    assert _runs.load(out).posterior.predict([[0.0, 1.0]]).mean.sum() == pytest.approx(1, abs=1e-6)


def test_a_linear_model_by_gibbs_steps(run, tmp_path):
    out = tmp_path / "run"
    how = ("--method", "gibbslinear:draws=20", "--prior", "normal", "--net", "linear", "--epochs", "30")
    result = run("fit", "diabetes", *how, "--out", out, "--no-progress")
    assert result.exit_code == 0, result.stderr
    assert _runs.load(out).posterior.num_draws == [20] * 4


BAD = [
    (["moon"], "Unknown data set 'moon': did you mean 'moons'?"),
    (["gone.csv"], "there is no such file"),
    (["moons", "--method", "sgdl"], "Unknown method 'sgdl': did you mean 'SGLD'?"),
    (["moons", "--method", "sgld:draw=3"], "Unknown option of SGLD 'draw': did you mean 'draws'?"),
    (["moons", "--method", "sgld:draws"], "Expected NAME:OPTION=VALUE"),
    (["moons", "--method", "nuts", "--lr", "0.1"], "Expected no learning rate for NUTS"),
    (["moons", "--lr", "-1"], "Expected lr > 0"),
    (["moons", "--prior", "gaussian"], "Unknown prior 'gaussian'"),
    (["moons", "--prior", "normal:scale=-1"], "Expected scale > 0"),
    (["moons", "--prior", "deterministic:scale=1"], "Expected no options for Deterministic"),
    (["moons", "--net", "lenet"], "Unknown net 'lenet': did you mean 'lenet5'?"),
    (["moons", "--net", "lenet5"], "Expected images for lenet5"),
    (["digits", "--net", "lenet5", "--widths", "3"], "Expected widths for the mlp alone"),
    (["digits", "--net", "lenet5", "--dropout", "0.1"], "Expected no dropout for lenet5"),
    (["digits", "--net", "linear"], "Expected rows of numbers for linear"),
    (["moons", "--widths", "wide"], "Expected widths as whole numbers"),
    (["moons", "--epochs", "0"], "Expected epochs to be an integer >= 1"),
    (["moons", "--batch-size", "0"], "Expected batch_size to be an integer >= 1"),
    (["moons", "--chains", "0"], "Expected chains to be an integer >= 1"),
    (["moons", "--seed", "-1"], "Expected seed to be an integer >= 0"),
    (["moons", "--validation", "1.5"], "validation"),
    (["moons", "--target", "y"], "Expected --target with a CSV file alone"),
    (["moons", "--kind", "classes"], "Expected --kind with a CSV file alone"),
]


@pytest.mark.parametrize(("arguments", "message"), BAD, ids=[" ".join(arguments) for arguments, _ in BAD])
def test_bad_input_is_one_line_and_exit_2(refused, tmp_path, arguments, message):
    assert message in refused("fit", *arguments, "--out", tmp_path / "run", "--no-progress")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "Expected --target with a CSV file, got none: name one of id, area, age, price."),
        (["--target", "cost"], "Expected a target among the columns of"),
        (["--target", "price", "--ignore", "ident"], "Unknown column to leave out 'ident': did you mean 'id'?"),
        (["--target", "price", "--kind", "class"], "Unknown kind of target 'class': did you mean 'classes'?"),
        (["--target", "price", "--test-fraction", "1"], "Expected a test fraction in [0, 1), got 1"),
        (["--target", "price", "--ignore", "id", "--ignore", "area", "--ignore", "age"], "nothing is left"),
    ],
)
def test_bad_files_are_one_line_and_exit_2(refused, houses, tmp_path, arguments, message):
    assert message in refused("fit", houses, *arguments, "--out", tmp_path / "run", "--no-progress")


def test_a_fit_that_diverges_is_exit_2(run, tmp_path):
    how = ("--method", "map:optimizer=sgd", "--lr", "1e30", "--epochs", "3", "--out", tmp_path / "run", "--no-progress")
    result = run("fit", "diabetes", *how)
    assert (result.exit_code, result.stdout) == (2, "")
    warning, error = result.stderr.splitlines()
    assert warning.startswith("warning: Chain 0 stopped")
    assert error.startswith("error: Expected a finite loss")
    assert not (tmp_path / "run").exists()


def test_scores_that_fail_do_not_cost_the_fit(run, tmp_path, monkeypatch):
    def full(*_, **__):
        raise MemoryError

    monkeypatch.setattr(bnn.Posterior, "predict", full)
    arguments = ("fit", "moons", "--method", "map", "--epochs", "1", "--out", tmp_path / "run", "--no-progress")
    assert isinstance(run(*arguments).exception, MemoryError)
    assert _runs.load(tmp_path / "run").posterior.num_chains == 1


def test_what_an_interrupted_fit_has_is_saved(run, tmp_path, monkeypatch):
    fit = bnn.fit

    def stopped(*arguments, **options):
        posterior = fit(*arguments, **options)
        posterior.info["interrupted"] = True
        return posterior

    monkeypatch.setattr(sys.modules["bayesnn"], "fit", stopped)
    result = run("fit", "moons", "--method", "map", "--epochs", "1", "--out", tmp_path / "run", "--no-progress")
    assert result.exit_code == 130
    assert result.stdout.endswith(f"The run is in {tmp_path / 'run'}\n")
    assert _runs.load(tmp_path / "run").posterior.num_chains == 1


def test_transforms_are_those_of_the_library(run, refused, tmp_path):
    out = tmp_path / "run"
    options = ("--net", "lenet5", "--method", "map", "--epochs", "1", "--no-progress", "--out")
    how = ("--augment", "rotation:15", "--augment", "shift:1")
    assert run("fit", "digits", *how, *options, out).exit_code == 0
    loaded = _runs.load(out)
    assert loaded.settings["augment"] == ["rotation:15", "shift:1"]
    transform = bnn.data.Compose(bnn.data.Rotation(15), bnn.data.Shift(1))
    model = bnn.BayesianModel(bnn.nets.LeNet5((1, 8, 8)), likelihood=bnn.likelihoods.Categorical())
    mine = bnn.fit(
        model, bnn.data.load("digits")[0], method_named("map")[0], epochs=1, augment=transform, progress=False
    )
    for name, weight in mine.states()[0][0].items():
        torch.testing.assert_close(weight, loaded.posterior.states()[0][0][name])
    assert "did you mean 'rotation'" in refused("fit", "digits", "--augment", "rotatoin:15", *options, tmp_path / "no")
    assert "degrees" in refused("fit", "digits", "--augment", "rotation:much", *options, tmp_path / "no")


def test_rows_of_rare_classes_are_drawn_as_often(run, refused, tmp_path):
    out = tmp_path / "run"
    options = ("--method", "map", "--net", "linear", "--epochs", "2", "--no-progress", "--out")
    assert run("fit", "breast-cancer", "--sampling", "balanced", *options, out).exit_code == 0
    loaded = _runs.load(out)
    assert loaded.settings["sampling"] == "balanced"
    train = bnn.data.load("breast-cancer")[0]
    model = bnn.BayesianModel(torch.nn.Linear(30, 2), likelihood=bnn.likelihoods.Categorical())
    mine, plain = (
        bnn.fit(model, train, method_named("map")[0], epochs=2, sampling=sampling, progress=False)
        for sampling in ("balanced", None)
    )
    for name, weight in loaded.posterior.states()[0][0].items():
        torch.testing.assert_close(weight, mine.states()[0][0][name])
        assert not torch.allclose(weight, plain.states()[0][0][name])
    assert "Known: balanced" in refused("fit", "breast-cancer", "--sampling", "even", *options, tmp_path / "no")
