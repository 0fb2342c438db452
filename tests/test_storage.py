import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import bayesnn as bnn
from bayesnn import likelihoods, priors
from bayesnn.data import Data, Standardize

X = torch.linspace(-1, 1, 24)[:, None]
Y = (3 * X[:, 0]).sin()


def plain():
    return nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))


def with_frozen_part():
    net = plain()
    net[0].requires_grad_(False)
    return net


def with_batch_norm():
    return nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 1))


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(1, 4)
        self.first, self.second, self.head = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 1)
        self.second.weight = self.first.weight
        self.register_buffer("offset", torch.rand(1))

    def forward(self, x):
        return self.head(self.second(self.first(self.inner(x)).tanh()).tanh()) + self.offset


CASES = [
    (make, method)
    for make in (plain, with_frozen_part, with_batch_norm, Shared)
    for method in (bnn.MAP(), bnn.MeanFieldVI(), bnn.SGLD(draws=3, warm_up=0.1), bnn.IVON(), bnn.SVGD(particles=3))
    if not (make is with_batch_norm and isinstance(method, (bnn.MeanFieldVI, bnn.IVON, bnn.SVGD)))
]


def fitted(make=plain, method=None, likelihood=None, data=(X, Y), prior=None, init="fresh"):
    model = bnn.BayesianModel(make(), prior, likelihood or likelihoods.Normal())
    return bnn.fit(
        model, data, method or bnn.SGLD(draws=3), epochs=4, chains=2, batch_size=8, init=init, progress=False
    )


def answers(posterior, x=X):
    predictive = posterior.predict(x, draws=3)
    return [predictive.mean, predictive.aleatoric, predictive.epistemic, predictive.log_prob(Y), predictive.sample(4)]


def assert_same_answers(first, second):
    for a, b in zip(answers(first), answers(second), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("make", "method"), CASES, ids=lambda v: getattr(v, "__name__", type(v).__name__))
@pytest.mark.parametrize("init", ["fresh", "net"])
def test_a_loaded_posterior_answers_to_the_bit(make, method, init, tmp_path):
    posterior = fitted(make, method, init=init)
    posterior.save(tmp_path / "saved")
    other = make()  # other weights, another offset
    before = {name: tensor.clone() for name, tensor in other.state_dict().items()}
    again = bnn.Posterior.load(tmp_path / "saved", other)
    assert_same_answers(posterior, again)
    for chain in range(2):
        assert torch.equal(posterior.net(chain, 0)(X), again.net(chain, 0)(X))
    assert all(torch.equal(tensor, before[name]) for name, tensor in other.state_dict().items())  # the user's own net


@pytest.mark.parametrize("method", [bnn.MAP(), bnn.SGLD(draws=3)], ids=lambda method: type(method).__name__)
def test_frozen_parameters_are_constants_of_every_chain(method):
    net = with_frozen_part()
    model = bnn.BayesianModel(net, likelihood=likelihoods.Normal())
    posterior = bnn.fit(model, (X, Y), method, epochs=3, chains=2, progress=False)
    for chain in range(2):
        assert torch.equal(posterior.net(chain)[0].weight, net[0].weight)
    assert set(posterior.states()[0][0]) == {"net.2.weight", "net.2.bias", "likelihood.log_scale"}


def test_fresh_initial_weights_do_not_touch_frozen_ones():
    seen = []

    class Watching(nn.Linear):
        def forward(self, x):
            seen.append(self.weight.detach().clone())
            return super().forward(x)

    net = nn.Sequential(Watching(1, 4), nn.Tanh(), nn.Linear(4, 1))
    net[0].requires_grad_(False)
    bnn.fit(bnn.BayesianModel(net, likelihood=likelihoods.Normal()), (X, Y), bnn.MAP(), epochs=1, progress=False)
    assert all(torch.equal(weight, net[0].weight) for weight in seen)


def test_shared_weights_are_drawn_once_and_stay_shared(tmp_path):
    posterior = fitted(Shared)
    posterior.save(tmp_path)
    for one in (posterior, bnn.Posterior.load(tmp_path, Shared())):
        assert "net.second.weight" not in one.states()[0][0]
        net = one.net(0, 1)
        assert net.first.weight is net.second.weight
        assert torch.equal(net.second.weight, one.states()[0][1]["net.first.weight"])


@pytest.mark.parametrize(
    "likelihood",
    [
        likelihoods.StudentT(5.0, prior=likelihoods.LogNormalScale(0.2, 0.5)),
        likelihoods.Normal(0.2),
        likelihoods.Laplace(),
    ],
    ids=repr,
)
def test_likelihoods_and_their_parameters_come_back(likelihood, tmp_path):
    posterior = fitted(likelihood=likelihood)
    posterior.save(tmp_path)
    again = bnn.Posterior.load(tmp_path, plain())
    assert repr(again.model.likelihood) == repr(likelihood)
    assert_same_answers(posterior, again)


def test_prior_target_history_and_info_come_back(tmp_path):
    data = Data(X, 100 + 7 * Y, target=Standardize.fit(100 + 7 * Y))
    posterior = fitted(data=data, prior=priors.ByName({"0.*": priors.Laplace(2.0)}))
    posterior.save(tmp_path)
    again = bnn.Posterior.load(tmp_path, plain())
    assert_same_answers(posterior, again)
    assert again.model.prior == posterior.model.prior
    assert again.target.to_dict() == posterior.target.to_dict()
    assert again.history == posterior.history
    assert again.info == json.loads(json.dumps(posterior.info))
    assert again.num_data == 24
    assert repr(again) == repr(posterior)
    assert again.train is None


def test_double_precision_comes_back(tmp_path):
    model = bnn.BayesianModel(plain().double(), likelihood=likelihoods.Normal())
    posterior = bnn.fit(model, (X.double(), Y.double()), bnn.SGLD(draws=3), epochs=2, progress=False)
    posterior.save(tmp_path)
    again = bnn.Posterior.load(tmp_path, plain())
    assert again.predict(X).mean.dtype == torch.float64
    assert_same_answers(posterior, again)


def test_unequal_chains_come_back(tmp_path):
    posterior = fitted()
    posterior.sources[0] = type(posterior.sources[0])({k: v[:1] for k, v in posterior.sources[0].stacked.items()})
    posterior.save(tmp_path)
    again = bnn.Posterior.load(tmp_path, plain())
    assert again.num_draws == [1, 3]
    assert_same_answers(posterior, again)


def test_a_loaded_posterior_can_be_saved_and_gone_on_from(tmp_path):
    posterior = fitted()
    posterior.save(tmp_path / "a")
    again = bnn.Posterior.load(tmp_path / "a", plain())
    again.save(tmp_path / "b")
    assert_same_answers(posterior, bnn.Posterior.load(tmp_path / "b", plain()))
    model = bnn.BayesianModel(plain(), likelihood=likelihoods.Normal())
    options = {"method": bnn.SGLD(draws=3), "epochs": 6, "chains": 2, "progress": False}
    assert_same_answers(
        bnn.fit(model, (X, Y), init=posterior, **options), bnn.fit(model, (X, Y), init=again, **options)
    )


def test_no_pickle_is_written(tmp_path):
    fitted().save(tmp_path)
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["chain-0.safetensors", "chain-1.safetensors", "constants.safetensors", "manifest.json"]
    for file in tmp_path.iterdir():
        # A pickle starts with the protocol opcode 0x80, a zip (torch.save) with PK.
        assert file.read_bytes()[:1] not in (b"\x80", b"P")


def test_saving_over_an_older_posterior_replaces_it(tmp_path, monkeypatch):
    fitted().save(tmp_path)
    newer = fitted(method=bnn.MAP())
    newer.save(tmp_path)
    assert_same_answers(newer, bnn.Posterior.load(tmp_path, plain()))
    monkeypatch.setattr("safetensors.torch.save_file", lambda *arguments: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        fitted().save(tmp_path)
    assert_same_answers(newer, bnn.Posterior.load(tmp_path, plain()))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (
            lambda: nn.Sequential(nn.Linear(1, 5), nn.Tanh(), nn.Linear(5, 1)),
            r"Expected 'net.0.bias' of shape \(5,\), got \(4,\): give the net",
        ),
        (lambda: nn.Linear(1, 1), r"Expected a state of the net's own parameters, got 4 unknown and 2 missing names"),
        (
            lambda: nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1), nn.Linear(1, 1)),
            "0 unknown and 2 missing",
        ),
        (with_frozen_part, "to be trainable, as when saved, got a frozen one: unfreeze it"),
        (lambda: nn.Sequential(nn.Linear(1, 4), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 1)), "give the .*that"),
        (
            lambda: nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1), nn.BatchNorm1d(1, affine=False)),
            "Expected a net without 'net.3.num_batches_tracked', which was not saved",
        ),
    ],
)
def test_another_net_is_one_clear_line(make, message, tmp_path):
    fitted().save(tmp_path)
    with pytest.raises(ValueError, match=message) as error:
        bnn.Posterior.load(tmp_path, make())
    assert "\n" not in str(error.value)


def test_a_net_without_the_saved_constants_is_one_clear_line(tmp_path):
    fitted(Shared).save(tmp_path)
    net = Shared()
    del net.offset
    net.offset = 0.0
    with pytest.raises(
        ValueError, match=r"Expected 'net.offset' of shape \(1,\) in the net, got none: give the architecture"
    ):
        bnn.Posterior.load(tmp_path, net)


def tampered(path, change):
    manifest = json.loads((path / "manifest.json").read_text())
    change(manifest)
    (path / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.update(version=99), "version 2, got 'bayesnn-posterior', version 99 .*load it with the version"),
        (lambda m: m.update(format="other"), "Expected format bayesnn-posterior, version 2, got 'other'"),
        (lambda m: m.pop("chains"), "got no chains: it is damaged"),
        (lambda m: m.update(chains=[]), r"got chains \[\]: it is damaged"),
        (lambda m: m.update(chains=["chain-0.safetensors"]), "got a chain 'chain-0.safetensors': it is damaged"),
        (lambda m: m["chains"][0].update(kind="pickle"), "got a chain .*pickle.*: it is damaged"),
        (lambda m: m["chains"][0].update(kind="normal"), "got tensors that are not those of 'normal': it is damaged"),
        (lambda m: m["chains"][0].update(files=["../secret.safetensors"]), "got a file .*secret.*: it is damaged"),
        (lambda m: m["chains"][0].update(files=["gone.safetensors"]), "gone.safetensors as .*: it is damaged"),
        (lambda m: m.update(dtype="nn"), "got dtype 'nn': it is damaged"),
        (lambda m: m.update(prior={"kind": "Unknown"}), "got Unknown: pass prior="),
        (lambda m: m.update(likelihood={"kind": "Unknown"}), "got Unknown: pass likelihood="),
    ],
)
def test_a_tampered_manifest_is_one_clear_line(change, message, tmp_path):
    fitted().save(tmp_path)
    tampered(tmp_path, change)
    with pytest.raises(ValueError, match=message) as error:
        bnn.Posterior.load(tmp_path, plain())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x80\x04."])
def test_a_manifest_that_is_no_manifest(text, tmp_path):
    fitted().save(tmp_path)
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"Expected .* got .*(damaged|version)") as error:
        bnn.Posterior.load(tmp_path, plain())
    assert "\n" not in str(error.value)


def test_damaged_tensors(tmp_path):
    fitted().save(tmp_path)
    whole = load_file(tmp_path / "chain-1.safetensors")
    (tmp_path / "chain-1.safetensors").write_bytes(b"\x80\x04cos\nsystem\n")
    with pytest.raises(ValueError, match=r"chain-1.safetensors as posterior.save\(\) writes it, got .*damaged"):
        bnn.Posterior.load(tmp_path, plain())
    save_file(
        {"net.0.weight": whole["net.0.weight"]}, tmp_path / "chain-1.safetensors"
    )  # any chain, not only the first
    with pytest.raises(ValueError, match="0 unknown and 4 missing names"):
        bnn.Posterior.load(tmp_path, plain())


def test_nothing_there(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"Expected a posterior saved by posterior.save\(\) in .*nothing"
    ) as error:
        bnn.Posterior.load(tmp_path / "nothing", plain())
    assert "\n" not in str(error.value)


def test_a_users_own_prior_is_asked_for_again(tmp_path):
    def own(name, parameter, module):
        return priors.Laplace(3.0)(name, parameter, module)

    posterior = fitted(prior=own)
    posterior.save(tmp_path)
    with pytest.raises(ValueError, match="pass prior="):
        bnn.Posterior.load(tmp_path, plain())
    again = bnn.Posterior.load(tmp_path, plain(), prior=own)
    assert_same_answers(posterior, again)
    weights = [p for name, p in again.model.named_parameters() if name.startswith("net.")]
    laplace = sum(torch.distributions.Laplace(0.0, 3.0).log_prob(p).sum() for p in weights)
    own_names = [name for name in again.model.log_priors if name.startswith("likelihood.")]
    noise = sum(again.model.log_priors[name].log_prob(again.model.bayesian_parameters()[name]) for name in own_names)
    torch.testing.assert_close(again.model.log_prior(), laplace + noise)


@pytest.mark.parametrize(
    "options",
    [
        {"seed": np.int64(3)},
        {"batch_size": np.int64(8)},
        {"method": bnn.MAP(lr=np.float32(0.1))},
        {"prior": priors.Normal(np.float32(1.5))},
        {"likelihood": likelihoods.Normal(scale=np.float32(0.1))},
        {"likelihood": likelihoods.StudentT(df=np.int64(4))},
    ],
    ids=lambda options: next(iter(options)),
)
def test_numbers_of_numpy_are_saved_as_pythons(options, tmp_path):
    model = bnn.BayesianModel(plain(), options.pop("prior", None), options.pop("likelihood", likelihoods.Normal()))
    posterior = bnn.fit(model, (X, Y), **{"method": bnn.MAP(), "epochs": 2, "progress": False, **options})
    posterior.save(tmp_path)
    assert_same_answers(posterior, bnn.Posterior.load(tmp_path, plain()))
    assert type(posterior.info["seed"]) is type(posterior.info["batch_size"]) is int


def failing_write(file, *args):
    raise OSError("No space left on device")


@pytest.mark.parametrize("fault", ["json", "tensors", "manifest"])
def test_a_save_that_fails_leaves_the_earlier_one_whole(fault, tmp_path, monkeypatch):
    first, second = fitted(), fitted(method=bnn.MAP())
    first.save(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    if fault == "json":
        second.info["mine"] = object()
    elif fault == "tensors":
        tensors, calls = second.sources[1].tensors, []
        monkeypatch.setattr(second.sources[1], "tensors", lambda: calls.append(1) or {**tensors(), "net.0.bias": None})
    else:
        monkeypatch.setattr("pathlib.Path.write_text", failing_write)
    with pytest.raises((TypeError, OSError, AttributeError)):
        second.save(tmp_path)
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert_same_answers(first, bnn.Posterior.load(tmp_path, plain()))


def test_a_second_save_replaces_the_first_and_leaves_other_files_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    fitted().save(tmp_path)
    again = bnn.Posterior.load(tmp_path, plain())
    again.save(tmp_path)  # over the files that it was read from
    point = fitted(method=bnn.MAP())
    assert_same_answers(again, bnn.Posterior.load(tmp_path, plain()))
    point.save(tmp_path)
    assert_same_answers(point, bnn.Posterior.load(tmp_path, plain()))
    assert len(list(tmp_path.iterdir())) == 5  # two chains, constants, manifest, notes


def test_loaded_tensors_are_aligned_as_torchs_own(tmp_path):
    """The last bits of a matrix product may depend on it: what is loaded shall predict the same bits everywhere."""
    fitted(method=bnn.FullRankVI()).save(tmp_path)
    tensors = bnn.Posterior.load(tmp_path, plain()).sources[0].tensors()
    assert {value.data_ptr() % 64 for value in tensors.values()} == {0}


@pytest.mark.parametrize("method", [bnn.SGLD(draws=3), bnn.MeanFieldVI(), bnn.FullRankVI()], ids=repr)
def test_what_is_loaded_is_where_the_net_is(method, tmp_path):
    """Draws, a law and the likelihood's own parameters; on "meta", which stands for a GPU, there are no numbers."""
    fitted(method=method).save(tmp_path)
    posterior = bnn.Posterior.load(tmp_path, plain().to("meta"))
    held = [*posterior.sources[0].tensors().values(), *posterior.model.parameters()]
    assert {value.device.type for value in held} == {"meta"}
