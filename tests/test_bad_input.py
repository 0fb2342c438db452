"""Every mistake is one line that says what was expected, what came and what to do; and no work is lost by it."""

import contextlib
import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import bayesnn as bnn
from bayesnn import likelihoods
from bayesnn.data import Data, Standardize
from bayesnn.data.batches import Loader
from bayesnn.methods import laplace

N = 20
X = torch.linspace(-1, 1, 2 * N).reshape(N, 2)
Y = X.sum(1)
LABELS = torch.arange(N) % 3


def model_of(net=None, likelihood=None, prior=None):
    return bnn.BayesianModel(net or nn.Linear(2, 1), prior, likelihood or likelihoods.Normal())


def fit(model=None, data=(X, Y), method=None, **options):
    return bnn.fit(model or model_of(), data, method, **{"epochs": 2, "progress": False, **options})


def classifier(outputs=3):
    return model_of(nn.Linear(2, outputs), likelihoods.Categorical())


class Stream(IterableDataset):
    def __iter__(self):
        return zip(X, Y, strict=True)


def with_bad(tensor, value):
    tensor = tensor.clone()
    tensor.flatten()[3] = value
    return tensor


def lists(tensor):
    return [float(v) for v in tensor]


MISTAKES = {
    # what the data are
    "x of another width": (
        lambda: fit(data=(X[:, :1], Y)),
        r"Expected a net that takes inputs of shape \(batch, 1\).*got",
    ),
    "one-hot classes": (
        lambda: fit(classifier(), (X, nn.functional.one_hot(LABELS))),
        r"Expected one class a row, \(batch,\), got \(20, 3\): of one-hot rows use y.argmax\(1\)",
    ),
    "the class of a prior": (
        lambda: model_of(prior=bnn.priors.Normal),
        r"Expected prior= to be an object, got the class Normal: call it, Normal\(\)",
    ),
    "the class of a likelihood": (
        lambda: model_of(likelihood=likelihoods.Normal),
        r"Expected likelihood= to be one of bayesnn.likelihoods, got the class Normal: call it, Normal\(\)",
    ),
    "a loader to predict": (
        lambda: fit().predict(DataLoader(TensorDataset(X, Y))),
        "Expected inputs as a tensor or an array, got a DataLoader: pass its x",
    ),
    "pairs to standardize": (
        lambda: bnn.data.standardize((X, Y)),
        r"standardize: expected Data, got a tuple: make one with Data.of\(x, y\)",
    ),
    "x as images": (lambda: fit(data=(torch.rand(N, 1, 4, 4), Y)), r"Expected a net .*got"),
    "x of integers": (
        lambda: fit(data=(X.long(), Y)),
        "Expected a net that takes inputs .*torch.int64.*weights are torch.float32",
    ),
    **{
        f"net that raises {error.__name__}": (
            lambda error=error: fit(model_of(Raises(error))),
            rf"takes inputs of shape \(batch, 2\).*got from the net .*: {error.__name__}",
        )
        for error in (AssertionError, AttributeError, KeyError, NotImplementedError)
    },
    "net that raises in training alone": (
        lambda: fit(model_of(Raises(AssertionError, training=True))),
        "Expected a net that trains on 20 rows, got: AssertionError",
    ),
    "predict: rows without an axis": (
        lambda: fit(model_of(nn.Linear(1, 1)), (X[:, :1], Y)).predict(X[:, 0]),
        r"Expected inputs of the shape that the net was fitted to, got \(20,\) and torch.float32: mat1",
    ),
    "predict: an axis too many": (
        lambda: fit().predict(X.reshape(5, 4, 2)),
        r"Expected inputs of the shape .* got \(5, 4, 2\) and torch.float32: outputs \(2, 4, 1\)",
    ),
    "numbers of a loader that the net's dtype does not hold": (
        lambda: fit(data=DataLoader(TensorDataset(X.double() * 1e300, Y), batch_size=5), batch_size=None),
        "Expected finite inputs, got NaN or infinity in minibatch 1: clean or standardise them",
    ),
    "device that nobody knows": (lambda: fit(device="cudaa"), "Expected a device that is here, got 'cudaa': use 'cpu'"),
    "GPU that is not there": (
        lambda: fit(device="cuda:77"),
        "Expected a device that is here, got 'cuda:77': use 'cpu'",
    ),
    "net alone": (
        lambda: fit(nn.Linear(2, 1)),
        r"Expected a BayesianModel, got Linear: wrap it, BayesianModel\(net, prior, likelihood\)",
    ),
    "class in place of a model": (lambda: fit(nn.Linear), "Expected a BayesianModel, got the class Linear: wrap it"),
    "net that fails in silence": (lambda: fit(model_of(Silent())), "got from the net .*: RuntimeError"),
    "fewer targets": (lambda: fit(data=(X, Y[:-1])), r"expected as many rows in y as in x \(20\), got 19: one target"),
    "two targets, one output": (
        lambda: fit(data=(X, X)),
        r"Expected targets of shape \(batch, 1\).*got \(20, 2\): change the net",
    ),
    "one target, two outputs": (
        lambda: fit(model_of(nn.Linear(2, 2))),
        r"Expected targets of shape \(batch, 2\).*got \(20,\)",
    ),
    "y with three axes": (lambda: fit(data=(X, Y[:, None, None])), r"Expected targets of shape .*got \(20, 1, 1\)"),
    "class too large": (
        lambda: fit(classifier(2), (X, LABELS)),
        r"in \[0, 2\).*got 0 to 2: count classes from 0, or give the net",
    ),
    "class below zero": (lambda: fit(classifier(), (X, LABELS - 1)), r"in \[0, 3\).*got -1 to 1: count classes from 0"),
    "classes as floats": (
        lambda: fit(classifier(), (X, LABELS.float())),
        "integer class targets .*got torch.float32: use y.long",
    ),
    "one output for classes": (
        lambda: fit(classifier(1), (X, LABELS)),
        r"one output a class \(>= 2\), got 1: or use Bernoulli",
    ),
    "integers for Normal": (
        lambda: fit(data=(X, LABELS)),
        r"floating-point targets for Normal, got torch.int64: use y.float\(\)",
    ),
    "NaN in x": (lambda: fit(data=(with_bad(X, math.nan), Y)), "expected finite numbers in x, got 1 NaN.* row 1: drop"),
    "inf in x": (lambda: fit(data=(with_bad(X, math.inf), Y)), "expected finite numbers in x, got 1 NaN or infinite"),
    "NaN in y": (lambda: fit(data=(X, with_bad(Y, math.nan))), "expected finite numbers in y, got 1 NaN.* row 3: drop"),
    "inf in y": (lambda: fit(data=(X, with_bad(Y, -math.inf))), "expected finite numbers in y, got 1 NaN or infinite"),
    "no rows": (lambda: fit(data=(X[:0], Y[:0])), r"expected at least one row, got x \(0, 2\) and y \(0,\): add rows"),
    "no data": (lambda: fit(data=None), "Expected data as .* got NoneType: pass one of these"),
    "x alone": (lambda: fit(data=X), "Expected data as .* got Tensor: pass one of these"),
    "standardised classes": (
        lambda: fit(classifier(), Data(X, LABELS.float(), target=Standardize(torch.tensor(0.0), torch.tensor(1.0)))),
        "Expected targets in their own units for Categorical, got standardised ones: drop the data's target=",
    ),
    "standardised log targets": (
        lambda: fit(model_of(likelihood=likelihoods.LogNormal()), Data(X, Y.exp(), target=Standardize.fit(Y.exp()))),
        "Expected targets in their own units for LogNormal, got standardised ones",
    ),
    "stream without its size": (lambda: fit(data=DataLoader(Stream())), "pass num_data, the number of training rows"),
    "num_data with tensors": (
        lambda: fit(num_data=0),
        "Expected num_data to be an integer >= 1, got 0",
    ),
    "share of a loader": (
        lambda: fit(data=DataLoader(TensorDataset(X, Y)), validation=0.1),
        r"Expected validation=\(x, y\) beside a loader, got a share",
    ),
    "validation of another width": (
        lambda: fit(validation=(X[:, :1], Y)),
        "In the validation part: Expected a net that takes",
    ),
    "validation out of range": (
        lambda: fit(classifier(), (X, LABELS), validation=(X, LABELS + 1)),
        r"In the validation part: .*in \[0, 3\).*got 1 to 3",
    ),
    "validation share of 1": (lambda: fit(validation=1.0), r"expected a fraction in \(0, 1\), got 1.0"),
    # numbers
    "lr = 0": (lambda: bnn.MAP(lr=0.0), "Expected lr > 0 and finite, got 0.0: give a positive number"),
    "lr < 0": (lambda: bnn.SGLD(lr=-1.0), "Expected lr > 0 and finite, got -1.0"),
    "lr = inf": (lambda: bnn.MeanFieldVI(lr=math.inf), "Expected lr > 0 and finite, got inf"),
    "chains = 0": (lambda: fit(chains=0), "Expected chains to be an integer >= 1, got 0"),
    "chains = 1.5": (lambda: fit(chains=1.5), "Expected chains to be an integer >= 1, got 1.5"),
    "epochs = 0": (lambda: fit(epochs=0), "Expected epochs to be an integer >= 1, got 0"),
    "seed < 0": (lambda: fit(seed=-1), "Expected seed to be an integer >= 0, got -1"),
    "batch_size = 0": (lambda: fit(batch_size=0), "Expected batch_size to be an integer >= 1, got 0"),
    "no room for a draw": (
        lambda: fit(method=bnn.SGLD(thin=100)),
        "Expected at least one draw to keep, got thin=100 with 2 steps .*: raise epochs",
    ),
    "temperature < 0": (lambda: bnn.SGLD(temperature=-1.0), "Expected temperature >= 0 and finite, got -1.0"),
    "burn-in of everything": (lambda: bnn.SGLD(burn_in=1.0), r"Expected burn_in in \[0, 1\), got 1.0: it is a share"),
    # names, each with the nearest that is known
    "method": (lambda: fit(method="sgdl"), "Unknown method 'sgdl': did you mean 'SGLD'"),
    "schedule": (lambda: bnn.SGLD(lr=0.1, schedule="cosin"), "Unknown schedule 'cosin': did you mean 'cosine'"),
    "optimizer": (lambda: bnn.MAP(optimizer="adan"), "Unknown optimizer 'adan': did you mean 'adam'"),
    "order": (lambda: fit(order="shuffle"), "Unknown order 'shuffle': did you mean 'reshuffle'"),
    "init": (lambda: fit(init="frehs"), "Unknown init 'frehs': did you mean 'fresh'"),
    "activation": (lambda: bnn.nets.MLP(2, activation="rellu"), "Unknown activation 'rellu': did you mean 'relu'"),
    "data set": (lambda: bnn.data.load("digit"), "Unknown data set 'digit': did you mean 'digits'"),
    "rule of a prior": (
        lambda: bnn.priors.Layerwise("fanin"),
        "Unknown rule of a layerwise prior 'fanin': did you mean 'fan-in'",
    ),
    "a method of another kind": (
        lambda: fit(method=torch.optim.SGD),
        "Expected a method such as SGLD.*, got type: known are MAP",
    ),
    # what goes with what
    "net is no module": (
        lambda: model_of(lambda x: x),
        "Expected net to be a torch.nn.Module, got function: wrap it in one",
    ),
    "net without parameters": (
        lambda: model_of(nn.Flatten()),
        "Expected a net with parameters, got Flatten without any",
    ),
    "no likelihood": (
        lambda: bnn.BayesianModel(nn.Linear(2, 1)),
        "Expected likelihood= to be one of .*, got None: say which",
    ),
    "lazy net": (
        lambda: model_of(nn.LazyLinear(1)),
        "Expected materialised parameters, got a lazy 'weight': call the net on data",
    ),
    "dropout and SGLD": (
        lambda: fit(model_of(dropout()), method="SGLD"),
        "net without dropout for SGLD, got one whose outputs in train mode are random: .*MAP",
    ),
    "dropout and VI": (
        lambda: fit(model_of(dropout()), method="MeanFieldVI"),
        "net without dropout for MeanFieldVI, got one whose outputs in train mode are random",
    ),
    "batch norm and VI": (
        lambda: fit(model_of(batch_norm()), method="MeanFieldVI"),
        "without running statistics for MeanFieldVI, got '1': .*GroupNorm",
    ),
    "early stopping, no validation": (
        lambda: fit(early_stopping=3),
        "Expected validation= with early_stopping, got none: hold out a share",
    ),
    "early stopping of a sampler": (
        lambda: fit(method="SGLD", early_stopping=3, validation=0.2),
        "Expected no early_stopping for SGLD: a chain has no best epoch",
    ),
    "early stopping = 0": (
        lambda: fit(early_stopping=0, validation=0.2),
        "Expected early_stopping to be an integer >= 1, got 0",
    ),
    "outputs with three axes": (
        lambda: fit(model_of(nn.Sequential(nn.Linear(2, 4), nn.Unflatten(1, (2, 2))))),
        r"Expected targets of shape \(batch, 2, 2\) for a net whose outputs give 2 targets a pixel under Normal, got",
    ),
    "outputs in a tuple": (
        lambda: fit(model_of(nn.RNN(2, 1))),
        "Expected a net with outputs of shape .*got tuple: change what it returns",
    ),
    "posterior of another net": (
        lambda: fit(init=fit(model_of(nn.Linear(2, 1, bias=False)))),
        "Expected a state of the net's own parameters, got 0 unknown and 1 missing names",
    ),
}


class Raises(nn.Linear):
    def __init__(self, error, training=False):
        super().__init__(2, 1)
        self.error, self.only_in_training = error, training

    def forward(self, x):
        if self.training or not self.only_in_training:
            raise self.error
        return super().forward(x)


class Silent(nn.Linear):
    def __init__(self):
        super().__init__(2, 1)

    def forward(self, x):
        raise RuntimeError


def dropout():
    return nn.Sequential(nn.Linear(2, 4), nn.Dropout(0.1), nn.Linear(4, 1))


def batch_norm():
    return nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_clear_line(mistake):
    call, message = MISTAKES[mistake]
    with pytest.raises((ValueError, TypeError), match=message) as error:
        call()
    assert "\n" not in str(error.value)


def test_mistakes_in_the_data_show_before_the_first_step():
    steps = []
    net = nn.Linear(2, 3)
    net.register_forward_hook(lambda module, *rest: steps.append(1) if torch.is_grad_enabled() else None)
    model = model_of(net, likelihoods.Categorical())
    with pytest.raises(ValueError, match="In the validation part"):
        fit(model, (X, LABELS), validation=(X, LABELS + 1))
    with contextlib.suppress(ValueError):
        fit(model, (X, LABELS + 1))
    assert not steps


def test_a_batch_larger_than_the_data_takes_all_of_them():
    method = bnn.MAP(lr=0.01)
    posteriors = [fit(method=method, batch_size=size, epochs=5) for size in (10_000, N, None)]
    for posterior in posteriors:
        assert posterior.info["batch_size"] == N
        assert torch.equal(posterior.predict(X).mean, posteriors[0].predict(X).mean)


@pytest.mark.parametrize("name", ["mean-field", "Sgld ", "mapp", "something else entirely"])
def test_unknown_methods_list_the_known_ones(name):
    with pytest.raises(ValueError, match=r"Known: .*GibbsLinear, HMC, IVON, Laplace, .*MAP, MCDropout, MCLMC"):
        fit(method=name)


FIXED = likelihoods.Normal(scale=1.0)


def test_a_chain_that_diverges_keeps_its_draws_and_names_the_step():
    method = bnn.SGLD(lr=50.0, warm_up=0.0, burn_in=0.0, thin=1)
    with pytest.warns(UserWarning, match="Chain 0 stopped: its loss became NaN or infinite at step") as record:
        posterior = fit(model_of(likelihood=FIXED), method=method, epochs=500, chains=1)
    [diverged] = posterior.info["diverged"]
    [draws] = posterior.num_draws
    assert 2 <= draws <= diverged["step"] - 1 < 499
    assert f"at step {diverged['step']}; {draws} draws are kept. Lower lr" in str(record[0].message)
    assert record[0].filename == __file__  # it points at the call of fit
    assert all(bool(torch.isfinite(value).all()) for state in posterior.states()[0] for value in state.values())
    # They are the draws of the same chain cut before it broke.
    shorter = fit(model_of(likelihood=FIXED), method=method, epochs=draws, chains=1)
    assert torch.equal(shorter.sources[0].stacked["net.weight"], posterior.sources[0].stacked["net.weight"])


def test_one_chain_that_diverges_leaves_the_others():
    broken = []

    class BreaksOnce(nn.Linear):
        def forward(self, x):
            out = super().forward(x)
            if self.training and torch.is_grad_enabled():
                broken.append(1)
            return out * (math.nan if len(broken) == 7 else 1.0)

    with pytest.warns(UserWarning, match="Chain 0 stopped: .* at step 7; 0 draws are kept"):
        posterior = fit(model_of(BreaksOnce(2, 1)), method=bnn.SGLD(lr=0.1, draws=2), epochs=20, chains=3)
    assert posterior.num_draws == [2, 2]
    assert posterior.info["diverged"] == [{"chain": 0, "step": 7}]


@pytest.mark.parametrize(
    "method",
    [
        bnn.SGLD(lr=1e30, warm_up=0.0),
        bnn.SGLD(lr=3e38, warm_up=0.0, burn_in=0.0, thin=1),  # the first draw itself is infinite
        bnn.MAP(lr=1e30, optimizer="sgd"),
    ],
    ids=["burn-in", "infinite draw", "MAP"],
)
def test_when_every_chain_diverges_the_error_names_the_step_and_the_lr(method):
    with (
        pytest.warns(UserWarning, match="0 draws are kept"),
        pytest.raises(
            bnn.DivergedError, match=r"Expected a finite loss, got NaN or infinity in chain 0 at step \d+.*lower lr"
        ) as error,
    ):
        fit(model_of(likelihood=FIXED), (X, 100 * Y), method, epochs=50, chains=2)
    assert "\n" not in str(error.value)
    assert str(method.lr) in str(error.value)


@pytest.fixture(autouse=True)
def _no_looks(monkeypatch):
    """Passes are counted over all copies of a net, and a look at its gradients is one beside the steps."""
    monkeypatch.setattr("bayesnn.gradients.GradientWatch.look", lambda *_: {})


class Interrupts(nn.Module):
    """Presses Ctrl-C in the middle of training step number ``at``, counted from 1 over all copies of the net."""

    def __init__(self, at):
        super().__init__()
        self.linear, self.at, self.calls = nn.Linear(2, 1), at, Calls()

    def forward(self, x):
        if self.training and torch.is_grad_enabled():
            self.calls.append(1)
            if len(self.calls) == self.at:
                raise KeyboardInterrupt
        return self.linear(x)


class Calls(list):
    def __deepcopy__(self, memo):
        return self


def interrupted(method, at, **options):
    with pytest.warns(UserWarning, match="Interrupted: the posterior holds what there is so far") as record:
        posterior = fit(model_of(Interrupts(at)), method=method, **options)
    assert record[0].filename == __file__
    assert posterior.info["interrupted"] is True
    assert posterior.predict(X).mean.shape == (N,)
    assert bool(torch.isfinite(posterior.predict(X).total).all())
    return posterior


def same_weights(first, second):
    assert first.num_chains == second.num_chains
    for a, b in zip(first.sources, second.sources, strict=True):
        assert a.tensors().keys() == b.tensors().keys()
        for name, tensor in a.tensors().items():
            assert torch.equal(tensor, b.tensors()[name]), name


@pytest.mark.parametrize(
    "method",
    [bnn.MAP(schedule="constant"), bnn.MeanFieldVI(schedule="constant")],
    ids=lambda method: type(method).__name__,
)
def test_ctrl_c_leaves_the_point_or_distribution_of_the_last_whole_step(method):
    posterior = interrupted(method, at=6, epochs=100, chains=3)
    assert posterior.num_chains == 1
    assert len(posterior.history) == 5
    same_weights(posterior, fit(model_of(Interrupts(math.inf)), method=method, epochs=5, chains=1))


def test_ctrl_c_after_burn_in_keeps_the_draws_so_far():
    method = bnn.SGLD(lr=0.1, draws=10, burn_in=0.5)
    whole = fit(model_of(Interrupts(math.inf)), method=method, epochs=40, chains=1)
    cut = interrupted(method, at=28, epochs=40, chains=2)
    draws = method.kept_steps(40)
    [kept] = cut.num_draws
    assert kept == sum(step <= 27 for step in draws)
    np.testing.assert_array_equal(
        cut.sources[0].stacked["net.linear.weight"], whole.sources[0].stacked["net.linear.weight"][:kept]
    )


def test_ctrl_c_before_burn_in_gives_the_present_weights():
    posterior = interrupted(bnn.SGLD(draws=10), at=5, epochs=40, chains=2)
    assert posterior.num_draws == [1]
    assert all(not torch.equal(v, torch.zeros_like(v)) for v in posterior.states()[0][0].values())


def test_ctrl_c_in_a_later_chain_keeps_the_whole_ones_and_adds_no_draw_of_its_burn_in():
    posterior = interrupted(bnn.SGLD(lr=0.1, draws=10), at=40 + 40 + 3, epochs=40, chains=4)
    assert posterior.num_draws == [10, 10]
    whole = fit(model_of(Interrupts(math.inf)), method=bnn.SGLD(lr=0.1, draws=10), epochs=40, chains=2)
    same_weights(posterior, whole)


def test_ctrl_c_with_early_stopping_goes_back_to_the_best_epoch():
    posterior = interrupted(bnn.MAP(lr=0.01), at=10, epochs=40, validation=(X, Y), early_stopping=5)
    assert posterior.history[-1]["epoch"] == 8
    best = min(row["val_nll"] for row in posterior.history)
    assert -float(posterior.predict(X).log_prob(Y).mean()) == pytest.approx(best, rel=1e-5)


def wrong_width():
    return X[:4, :1], Y[:4]


def three_items():
    return X[:4], Y[:4], Y[:4]


def nan_batch():
    return with_bad(X[:4], math.nan), Y[:4]


def no_file():
    raise OSError("images/17.png is gone\nand more")


def ctrl_c():
    raise KeyboardInterrupt


class BadLate:
    """Minibatches of four rows, of which number ``at``, counted from 1 over all epochs, is bad."""

    def __init__(self, bad, at):
        self.bad, self.at, self.count = bad, at, 0

    def __iter__(self):
        for rows in torch.arange(N).split(4):
            self.count += 1
            yield self.bad() if self.count == self.at + 1 else (X[rows], Y[rows])  # fit looks at the first one

    def fit(self, method, **options):
        return fit(data=Loader(self, N, steps_per_epoch=5), method=method, **options)


BAD = [
    (wrong_width, r"In minibatch 43: Expected a net that takes inputs of shape \(batch, 1\)"),
    (three_items, r"Loader: expected minibatches \(x, y\) of two tensors, got 3 items"),
    (nan_batch, "Expected finite inputs, got NaN or infinity in minibatch 43"),
    (no_file, "images/17.png is gone$"),
    (ctrl_c, "Interrupted: the posterior holds what there is so far"),
]
by_name = lambda value: getattr(value, "__name__", "")  # noqa: E731


@pytest.mark.parametrize(("bad", "message"), BAD, ids=by_name)
def test_a_bad_minibatch_late_in_a_run_loses_no_draw(bad, message):
    method = bnn.SGLD(lr=0.1, warm_up=0.0, burn_in=0.0, thin=10)
    with pytest.warns(UserWarning, match=message) as record:
        posterior = BadLate(bad, 43).fit(method, epochs=20, chains=2)
    if bad is not ctrl_c:
        assert str(record[0].message).startswith("Stopped in chain 0 at step 42 with 4 draws kept: ")
    assert record[0].filename == __file__
    assert posterior.num_draws == [4]
    assert posterior.info["interrupted"] is True
    assert (posterior.info["error"] is None) == (bad is ctrl_c)


@pytest.mark.parametrize(("bad", "message"), BAD, ids=by_name)
def test_a_bad_minibatch_in_a_later_chain_loses_no_net_of_an_ensemble(bad, message):
    with pytest.warns(UserWarning, match=message.replace("43", "3")) as record:
        posterior = BadLate(bad, 23).fit(bnn.MAP(), epochs=2, chains=4)
    if bad is not ctrl_c:
        assert str(record[0].message).startswith(
            "Stopped in chain 2 at step 2 with 0 draws kept beside 2 whole chains:"
        )
    same_weights(posterior, BadLate(bad, math.inf).fit(bnn.MAP(), epochs=2, chains=2))


@pytest.mark.parametrize(("bad", "message"), BAD[:4], ids=by_name)
def test_with_nothing_kept_the_error_is_raised(bad, message):
    with pytest.raises((ValueError, TypeError, OSError)):
        BadLate(bad, 8).fit(bnn.MAP(), epochs=2, chains=3)


def test_ctrl_c_while_a_chain_finishes_keeps_those_before_it(monkeypatch):
    finish, calls = laplace._LaplaceRun.finish, []

    def pressed(run, batches):
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return finish(run, batches)

    monkeypatch.setattr(laplace._LaplaceRun, "finish", pressed)
    with pytest.warns(UserWarning, match="Interrupted"):
        posterior = fit(method=bnn.Laplace(), chains=3)
    assert posterior.num_chains == 2
    assert len(calls) == 3  # a pass over the data that the user ended is not begun anew
    calls[:] = [1, 1]
    with pytest.raises(KeyboardInterrupt):
        fit(method=bnn.Laplace())


def test_inputs_may_differ_in_length_where_the_net_takes_them():
    class Mean(nn.Linear):
        def forward(self, x):
            return super().forward(torch.stack((x.mean(1), x.amax(1)), 1))

    batches = [(torch.rand(4, length), torch.rand(4)) for length in (3, 5, 4)]
    posterior = fit(model_of(Mean(2, 1)), Loader(batches, 12))
    assert posterior.info["interrupted"] is False


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode], ids=lambda mode: mode.__name__)
@pytest.mark.parametrize("method", [bnn.MAP(), bnn.SGLD(draws=3), bnn.MeanFieldVI()], ids=lambda m: type(m).__name__)
def test_fit_inside_of_no_grad_is_the_same_fit(mode, method):
    expected = fit(method=method)
    with mode():
        posterior = fit(model_of(nn.Linear(2, 1)), (X.clone(), Y.clone()), method)
        batches = [(X.clone(), Y.clone())]
        fit(data=Loader(batches, N), method=method)
    same_weights(posterior, expected)


def test_no_gradient_reaches_the_users_own_tensors():
    scale = torch.ones((), requires_grad=True)
    x, y = X * scale, Y.clone().requires_grad_()
    x.retain_grad()
    for data in ((x, y), Loader([(x, y)], N), Data(x, y, target=Standardize.fit(Y))):
        fit(data=data, validation=None if isinstance(data, Loader) else 0.2)
    assert scale.grad is None
    assert x.grad is None
    assert y.grad is None


@pytest.mark.parametrize("target", [lists, np.asarray, lambda y: y.double()], ids=["list", "numpy", "float64"])
def test_what_is_no_mistake(target):
    posterior = fit(data=(X.double().numpy(), target(Y)))
    assert posterior.predict(X.tolist()).mean.dtype == torch.float32
    assert fit(data=(X, Y[:, None])).predict(X).mean.shape == (N,)


def test_dropout_that_is_no_module_is_found():
    class Functional(nn.Linear):
        def forward(self, x):
            return nn.functional.dropout(super().forward(x), 0.5, self.training)

    attention = nn.TransformerEncoderLayer(2, 1, 8, dropout=0.1, batch_first=True)
    for net in (Functional(2, 1), nn.Sequential(nn.Unflatten(1, (1, 2)), attention, nn.Flatten(), nn.Linear(2, 1))):
        with pytest.raises(ValueError, match="train mode are random"):
            fit(model_of(net), method=bnn.SGLD())


@pytest.mark.filterwarnings("error")
def test_a_schedule_begins_after_the_warm_up():
    method = bnn.SGLD(lr=0.1, warm_up=0.3, burn_in=0.5, schedule="linear")
    posterior = fit(model_of(), method=method, epochs=10, batch_size=None, chains=1)
    rates = [row["lr"] for row in posterior.history]
    assert rates[:3] == [0.1, 0.1, 0.1]
    assert rates == sorted(rates, reverse=True)
    assert rates[-1] == pytest.approx(1e-4)


def test_a_net_without_trainable_parameters_is_refused():
    net = nn.Linear(2, 1).requires_grad_(False)
    with pytest.raises(ValueError, match="at least one trainable parameter"):
        fit(model_of(net, likelihood=likelihoods.Normal(scale=1.0)))


class Centred(nn.Module):
    """A buffer of its own that training moves and eval mode uses, unknown to any list of layer types."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(2, 1)
        self.register_buffer("mean", torch.zeros(1))

    def forward(self, x):
        out = self.linear(x) + 5
        if self.training:
            with torch.no_grad():
                self.mean.lerp_(out.mean(0), 0.1)
            return out - out.mean(0)
        return out - self.mean


def settled_spectral_norm():
    """Power iteration has converged on the net's first weights: the buffers stand still until the weights move."""
    layer = nn.utils.parametrizations.spectral_norm(nn.Linear(2, 8))
    for _ in range(200):
        layer(X)
    return nn.Sequential(layer, nn.ReLU(), nn.Linear(8, 1))


def test_buffers_that_training_moves_come_back_with_the_draw():
    for net in (Centred(), settled_spectral_norm()):
        model = model_of(net, likelihood=likelihoods.Normal(scale=1.0))
        posterior = fit(model, method=bnn.MAP(), epochs=30, validation=(X, Y))
        again = -posterior.predict(X).log_prob(Y).mean()
        assert float(again) == pytest.approx(posterior.history[-1]["val_nll"], rel=1e-5)
        with pytest.raises(ValueError, match="running statistics"):
            fit(model, method=bnn.MeanFieldVI())


def test_going_on_from_a_posterior_draws_new_noise():
    method = bnn.SGLD(lr=1e-3, warm_up=0.0, burn_in=0.0, thin=1)
    model = model_of(likelihood=FIXED)
    first = fit(model, method=method, epochs=20, batch_size=None, chains=1)
    second = fit(model, method=method, epochs=20, batch_size=None, chains=1, init=first)
    third = fit(model, method=method, epochs=20, batch_size=None, chains=1, init=second)
    assert [p.info["round"] for p in (first, second, third)] == [0, 1, 2]
    steps = [p.sources[0].stacked["net.weight"].diff(dim=0).flatten() for p in (first, second, third)]
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert abs(float(torch.corrcoef(torch.stack((steps[a], steps[b])))[0, 1])) < 4 / len(steps[a]) ** 0.5


def test_more_chains_than_starts_are_warned_of():
    start = fit(model_of(), epochs=2)
    with pytest.warns(UserWarning, match="2 chains start from 1"):
        fit(model_of(), method=bnn.SGLD(lr=1e-3), epochs=4, chains=2, init=start)


def test_weights_that_no_module_resets_are_named():
    class Bare(nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = nn.Parameter(torch.tensor([[1.0], [2.0]]))

        def forward(self, x):
            return x @ self.slope

    with pytest.warns(UserWarning, match="same slope: no module resets"):
        fit(model_of(Bare()), epochs=2, chains=2)


def test_an_optimizer_with_a_weight_decay_of_its_own_finds_the_same_mode():
    modes = []
    for optimizer in ("adam", torch.optim.AdamW):
        method = bnn.MAP(lr=0.05, optimizer=optimizer)
        model = model_of(prior=bnn.priors.Normal(0.3), likelihood=FIXED)
        modes.append(fit(model, method=method, epochs=800, batch_size=None).sources[0].last()["net.weight"])
    torch.testing.assert_close(*modes, rtol=1e-3, atol=1e-4)


def test_a_weight_that_the_loss_does_not_reach_is_drawn_from_its_prior():
    class Unused(nn.Linear):
        def __init__(self):
            super().__init__(2, 1)
            self.idle = nn.Parameter(torch.zeros(2000))

    model = model_of(Unused(), prior=bnn.priors.Normal(0.1), likelihood=FIXED)
    posterior = fit(model, method=bnn.SGLD(lr=0.01, warm_up=0.0, burn_in=0.9, draws=1), epochs=400, batch_size=None)
    idle = posterior.sources[0].last()["net.idle"]
    # h = lr / N, Lambda = 1 / 0.1^2: variance 0.1^2 / (1 - h Lambda / 2)
    expected = 0.1 / (1 - 0.01 / N * 100 / 2) ** 0.5
    assert abs(float(idle.std()) / expected - 1) < 4 / (2 * 2000) ** 0.5


def test_early_stopping_counts_every_gradient():
    posterior = fit(model_of(), epochs=40, batch_size=None, validation=(X, Y), early_stopping=3)
    assert posterior.info["gradient_evaluations"] == [len(posterior.history)]
