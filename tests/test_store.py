"""Draws on disk: ``fit(store=...)`` against the same fit in memory, what a crash leaves, and the memory it takes."""

import json
import math
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from safetensors import safe_open
from torch import nn

import bayesnn as bnn
from bayesnn.chain import Chain
from bayesnn.kept import KeptOnDisk
from bayesnn.source import write_tensors
from bayesnn.source_shards import DamagedShardError, Shards
from bayesnn.storage import Store

X = torch.linspace(-1, 1, 24)[:, None]
Y = (3 * X[:, 0]).sin()
METHODS = [
    bnn.SGHMC(draws=7, warm_up=0.1),
    bnn.HMC(draws=4, map_steps=5),
    bnn.MAP(),
    bnn.MeanFieldVI(),
    bnn.SVGD(particles=5),
]


def net_of():
    return nn.Sequential(nn.Linear(1, 4), nn.Tanh(), nn.Linear(4, 1))


def fitted(method, **options):
    model = bnn.BayesianModel(net_of(), likelihood=bnn.likelihoods.Normal())
    batch = None if method.access == "full" else 8
    chains = 1 if method.coupled else 2
    return bnn.fit(model, (X, Y), method, epochs=10, chains=chains, batch_size=batch, progress=False, **options)


def assert_same(one, other, draws=None):
    assert one.num_draws == other.num_draws
    first, second = one.predict(X, draws=draws), other.predict(X, draws=draws)
    assert torch.equal(first.draws, second.draws)
    assert torch.equal(first.log_prob(Y), second.log_prob(Y))


@pytest.fixture
def small_files(monkeypatch):
    """Three draws of the net (14 float32, the noise's scale among them) a file."""
    monkeypatch.setattr("bayesnn.kept.SHARD_BYTES", 3 * 14 * 4)


@pytest.mark.filterwarnings("ignore:.*trajectories")
@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_draws_on_disk_are_those_in_memory_to_the_bit(method, small_files, tmp_path):
    memory, disk = fitted(method), fitted(method, store=tmp_path / "run")
    loaded = bnn.Posterior.load(tmp_path / "run", net_of())
    for one in (disk, loaded):
        for draws in (None, 3):
            assert_same(memory, one, draws)
        for chain in range(memory.num_chains):
            for draw in (0, -1):
                assert torch.equal(memory.net(chain, draw)(X), one.net(chain, draw)(X))
    assert memory.info["method"] == loaded.info["method"]
    assert loaded.info["interrupted"] is False
    assert len(loaded.history) == len(memory.history)
    if isinstance(method, bnn.SGHMC):
        names = sorted(file.name for file in (tmp_path / "run").glob("chain-0-*"))
        assert names == ["chain-0-0.safetensors", "chain-0-1.safetensors", "chain-0-2.safetensors"]  # 3, 3, 1
        assert [source.kind for source in loaded.sources] == ["shards", "shards"]


def test_draws_on_disk_are_read_to_where_the_net_is(tmp_path, monkeypatch):
    """On "meta", which stands for a GPU; safetensors does not know it."""
    devices = []

    def opened(file, framework, device="cpu"):
        devices.append(device)
        return safe_open(file, framework)

    fitted(bnn.SGHMC(draws=7, warm_up=0.1), store=tmp_path / "run")
    monkeypatch.setattr("safetensors.safe_open", opened)
    posterior = bnn.Posterior.load(tmp_path / "run", net_of().to("meta"))
    devices.clear()
    list(posterior.sources[0].states(None, torch.Generator()))
    assert devices == ["meta"]


def test_what_is_on_disk_goes_wherever_a_posterior_in_memory_goes(small_files, tmp_path):
    method = bnn.SGHMC(draws=7, warm_up=0.1)
    memory, disk = fitted(method), fitted(method, store=tmp_path / "run")
    after = [fitted(method, init=one) for one in (memory, disk)]
    assert_same(*after)
    for one, other in zip(memory.states(), disk.states(), strict=True):
        for a, b in zip(one, other, strict=True):
            assert all(torch.equal(a[name], b[name]) for name in a)
    priors = [one.as_prior() for one in (memory, disk)]
    assert torch.equal(*(prior.loc["0.weight"] for prior in priors))
    weights = [one.to_arviz(weights=True).posterior for one in (memory, disk)]
    assert sorted(weights[0]) == sorted(weights[1])
    with pytest.raises(IndexError, match=r"draw in \[0, 7\), got 7"):
        disk.sources[0].state(7, torch.Generator())


def test_saving_copies_the_files_and_leaves_them_where_they_are_read_from(small_files, tmp_path):
    disk = fitted(bnn.SGHMC(draws=7, warm_up=0.1), store=tmp_path / "run")
    expected = disk.predict(X).draws
    disk.save(tmp_path / "copy")
    disk.save(tmp_path / "run")  # where it lies already
    assert torch.equal(disk.predict(X).draws, expected)
    assert torch.equal(bnn.Posterior.load(tmp_path / "run", net_of()).predict(X).draws, expected)
    shutil.rmtree(tmp_path / "run")
    assert torch.equal(bnn.Posterior.load(tmp_path / "copy", net_of()).predict(X).draws, expected)
    with pytest.raises(
        ValueError, match=r"Expected the draws in .*chain-0-0.safetensors, got .*: put it back"
    ) as error:
        disk.predict(X).mean  # noqa: B018
    assert "\n" not in str(error.value)
    (tmp_path / "copy" / "chain-1-2.safetensors").unlink()
    with pytest.raises(ValueError, match=r"Expected .* as posterior\.save"):
        bnn.Posterior.load(tmp_path / "copy", net_of())


def test_a_directory_is_taken_only_while_it_is_empty(tmp_path):
    fitted(bnn.MAP()).save(tmp_path / "saved")
    before = (tmp_path / "saved" / "manifest.json").read_bytes()
    (tmp_path / "file").write_text("mine")
    for path, got in (("saved", "one with files in it"), ("file", "a file"), ("file/in", "a file")):
        with pytest.raises(ValueError, match=f"Expected an empty directory for store=, got {got}"):
            fitted(bnn.MAP(), store=tmp_path / path)
    with pytest.raises(ValueError, match="Expected a directory for store=, got ''"):
        fitted(bnn.MAP(), store="")
    assert (tmp_path / "saved" / "manifest.json").read_bytes() == before
    assert (tmp_path / "file").read_text() == "mine"


def test_of_two_fits_that_begin_at_once_one_gets_the_directory(tmp_path):
    posterior = fitted(bnn.MAP())
    Store(tmp_path / "run", posterior)
    with pytest.raises(ValueError, match="Expected an empty directory"):
        Store(tmp_path / "run", posterior)


def test_a_fit_that_leaves_nothing_gives_the_directory_back(tmp_path):
    with pytest.warns(UserWarning, match="stopped"), pytest.raises(bnn.DivergedError):
        fitted(bnn.SGLD(lr=1e9, warm_up=0.0), store=tmp_path / "run")
    assert fitted(bnn.MAP(), store=tmp_path / "run").num_chains == 2


def test_draws_that_have_waited_long_are_written(tmp_path, monkeypatch):
    monkeypatch.setattr("bayesnn.kept.SHARD_SECONDS", -1.0)
    seen = []
    kept = KeptOnDisk(tmp_path, "chain-0", torch.device("cpu"), lambda source: seen.append(source.num_draws))
    for number in range(4):
        kept.extend([{"w": torch.full((2,), float(number))}])
    assert seen == [1, 2, 3]  # the last waits for what comes after it
    assert [float(state["w"][0]) for state in kept.source().states(None, torch.Generator())] == [0, 1, 2, 3]


def test_a_draw_that_may_still_be_dropped_is_not_written(tmp_path, monkeypatch):
    """A broken one may be seen to be so only when the next has been made."""
    monkeypatch.setattr("bayesnn.kept.SHARD_SECONDS", -1.0)
    kept = KeptOnDisk(tmp_path, "chain-0", torch.device("cpu"), lambda source: None)
    for number in (1.0, math.nan, math.nan):
        kept.extend([{"w": torch.full((2,), number)}])
    kept.drop_broken()
    assert len(kept) == 1
    assert [float(state["w"][0]) for state in kept.source().states(None, torch.Generator())] == [1.0]


@pytest.mark.parametrize("method", [bnn.MAP(), bnn.MeanFieldVI(), bnn.SGHMC(draws=3)], ids=lambda m: type(m).__name__)
def test_each_whole_chain_is_on_disk_before_the_next_begins(method, tmp_path, monkeypatch):
    whole, run, begun = fitted(method), Chain.run, []

    def dies(chain, *rest):
        begun.append(chain.numbers)
        if len(begun) == 2:
            raise SystemExit  # what no fit holds up
        run(chain, *rest)

    monkeypatch.setattr(Chain, "run", dies)
    with pytest.raises(SystemExit):
        fitted(method, store=tmp_path)
    loaded = bnn.Posterior.load(tmp_path, net_of())
    assert loaded.info["interrupted"] is True
    assert loaded.num_draws == whole.num_draws[:1]
    assert torch.equal(loaded.net(0)(X), whole.net(0)(X))


@pytest.mark.parametrize("room", [0, 1, 3])
def test_a_disk_that_is_full_loses_nothing(room, small_files, tmp_path, monkeypatch):
    """Files beyond ``room`` fail: the run stops and all draws made so far are there, some of them in memory."""
    written = []

    def write(tensors, file):
        if len(written) == room:
            raise OSError("No space left on device")
        written.append(file)
        write_tensors(tensors, file)

    for module in ("kept", "source", "storage"):
        monkeypatch.setattr(f"bayesnn.{module}.write_tensors", write)
    method = bnn.SGHMC(draws=7, warm_up=0.1)
    with pytest.warns(UserWarning, match="No space left on device"):
        posterior = fitted(method, store=tmp_path / "run")
    assert posterior.info["error"] == "No space left on device"
    made = posterior.num_draws[0]
    assert 3 <= made <= 7
    for chain, expected in zip(posterior.states(), fitted(method).states(), strict=False):
        for one, other in zip(chain, expected, strict=False):
            assert all(torch.equal(one[name], other[name]) for name in one)
    monkeypatch.undo()
    posterior.save(tmp_path / "elsewhere")
    assert_same(bnn.Posterior.load(tmp_path / "elsewhere", net_of()), posterior)


def test_ctrl_c_while_a_chain_is_written_costs_nothing(tmp_path, monkeypatch):
    def write(store):
        raise KeyboardInterrupt

    monkeypatch.setattr(Store, "whole", write)
    with pytest.warns(UserWarning, match="The store could not be written, save the posterior elsewhere: interrupted"):
        posterior = fitted(bnn.MAP(), store=tmp_path / "run")
    assert (posterior.num_chains, posterior.info["interrupted"], posterior.info["error"]) == (1, True, None)
    assert torch.equal(posterior.net()(X), fitted(bnn.MAP()).net()(X))


def test_vi_whose_store_is_full_is_whole_in_memory(tmp_path, monkeypatch):
    def write(tensors, file):
        raise OSError("No space left on device")

    monkeypatch.setattr("bayesnn.source.write_tensors", write)
    with pytest.warns(UserWarning, match="The store could not be written, save the posterior elsewhere: No space"):
        posterior = fitted(bnn.MeanFieldVI(), store=tmp_path / "run")
    assert_same(posterior, fitted(bnn.MeanFieldVI()))


@pytest.mark.parametrize(
    ("damage", "got"),
    [
        (lambda tensors: {"w": tensors["w"].double(), "b": tensors["b"]}, "'w' of another form"),
        (lambda tensors: {"w": tensors["w"][:, :1], "b": tensors["b"]}, "'w' of another form"),
        (lambda tensors: {"w": tensors["w"]}, "'b' of another form"),
        (lambda tensors: {"w": tensors["w"], "b": tensors["b"][:1]}, r"tensors of \[1, 3\] draws"),
        (None, "No such file"),
    ],
)
def test_a_damaged_file_is_the_one_that_is_named(damage, got, tmp_path):
    tensors = {"w": torch.zeros(3, 2), "b": torch.zeros(3, 1)}
    files = [tmp_path / f"chain-0-{k}.safetensors" for k in range(3)]
    for file in files:
        write_tensors(tensors, file)
    if damage is None:
        files[1].unlink()
    else:
        write_tensors(damage(tensors), files[1])
    with pytest.raises(DamagedShardError, match=got) as caught:
        Shards(files)
    assert caught.value.file == files[1]


def test_what_a_module_keeps_beside_tensors_is_no_hindrance(tmp_path):
    class Extra(nn.Linear):
        def get_extra_state(self):
            return {"version": 3}

        def set_extra_state(self, state):
            assert state == {"version": 3}

    model = bnn.BayesianModel(nn.Sequential(Extra(1, 1)), likelihood=bnn.likelihoods.Normal())
    posterior = bnn.fit(model, (X, Y), epochs=5, validation=0.2, early_stopping=1, store=tmp_path, progress=False)
    assert_same(posterior, bnn.Posterior.load(tmp_path, nn.Sequential(Extra(1, 1))))


def test_a_draw_that_is_broken_is_not_on_disk(small_files, tmp_path):
    """A chain that blows up: its last draws are left out, as in memory."""
    options = {"lr": 3.0, "warm_up": 0.0, "burn_in": 0.0, "thin": 1}
    posteriors = []
    for store in (None, tmp_path / "run"):
        with pytest.warns(UserWarning, match="stopped"):
            posteriors.append(fitted(bnn.SGLD(**options), store=store))
    assert_same(*posteriors)
    assert all(
        torch.isfinite(value).all() for chain in posteriors[1].states() for state in chain for value in state.values()
    )


def test_ctrl_c_leaves_what_there_is(small_files, tmp_path):
    calls = 0

    class Impatient(nn.Linear):
        def forward(self, x):
            nonlocal calls
            calls += self.training
            if calls == 26:
                raise KeyboardInterrupt
            return super().forward(x)

    model = bnn.BayesianModel(nn.Sequential(Impatient(1, 1)), likelihood=bnn.likelihoods.Normal())
    method = bnn.SGLD(lr=1e-3, warm_up=0.0, burn_in=0.0, thin=1)
    with pytest.warns(UserWarning, match="Interrupted"):
        posterior = bnn.fit(model, (X, Y), method, epochs=10, chains=2, batch_size=8, store=tmp_path, progress=False)
    assert posterior.num_draws == [posterior.num_draws[0]]
    assert 0 < posterior.num_draws[0] < 30
    again = bnn.Posterior.load(tmp_path, nn.Sequential(nn.Linear(1, 1)))
    assert again.info["interrupted"] is True
    assert again.num_draws == posterior.num_draws


def test_what_a_killed_process_has_written_can_be_read(tmp_path):
    script = """
        import os, sys
        import torch
        from torch import nn
        import bayesnn as bnn
        import bayesnn.gradients
        import bayesnn.kept
        bayesnn.gradients.GradientWatch.look = lambda *_: {}  # it is a pass beside the steps
        bayesnn.kept.SHARD_BYTES = 3 * 3 * 4
        calls = 0
        class Dying(nn.Linear):
            def forward(self, x):
                global calls
                calls += self.training
                if calls == 40:
                    os._exit(9)
                return super().forward(x)
        x = torch.linspace(-1, 1, 24)[:, None]
        model = bnn.BayesianModel(nn.Sequential(Dying(1, 1)), likelihood=bnn.likelihoods.Normal())
        method = bnn.SGLD(lr=1e-3, warm_up=0.0, burn_in=0.0, thin=1)
        bnn.fit(model, (x, x[:, 0]), method, epochs=10, chains=2, batch_size=8, store=sys.argv[1], progress=False)
    """
    killed = subprocess.run([sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], check=False)
    assert killed.returncode == 9
    posterior = bnn.Posterior.load(tmp_path, nn.Sequential(nn.Linear(1, 1)))
    assert posterior.info["interrupted"] is True
    assert posterior.num_draws[0] == 30  # the first chain whole, of the second what was written: six or more
    assert posterior.num_draws[1] % 3 == 0
    assert posterior.num_draws[1] >= 3
    assert torch.isfinite(posterior.predict(X).mean).all()
    assert json.loads((tmp_path / "manifest.json").read_text())["version"] == 2


def test_memory_grows_neither_with_draws_nor_with_inputs(tmp_path):
    """Peak of the process after 24 draws of 4 MB and few inputs, and after 200 draws and many inputs."""
    script = """
        import resource, sys
        import torch
        from torch import nn
        import bayesnn as bnn
        import bayesnn.kept
        torch.set_num_threads(1)
        bayesnn.kept.SHARD_BYTES = 32 * 2**20
        def peak():
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        net = nn.Sequential(nn.Linear(1000, 1000), nn.ReLU(), nn.Linear(1000, 2))
        generator = torch.Generator().manual_seed(0)
        x, y = torch.randn(8, 1000, generator=generator), torch.arange(8) % 2
        inputs = torch.randn(3000, 1000, generator=generator)
        model = bnn.BayesianModel(net, bnn.priors.Normal(1.0), bnn.likelihoods.Categorical())
        def run(draws, rows, folder):
            method = bnn.SGLD(lr=1e-4, warm_up=0.0, burn_in=0.0, thin=1)
            posterior = bnn.fit(
                model, (x, y), method, epochs=draws, chains=1, batch_size=8, store=folder, progress=False
            )
            fitted = peak()
            del method
            predictive = bnn.Posterior.load(folder, net).predict(inputs[:rows], draws=16, batch_size=100)
            predictive.epistemic
            return fitted, peak()
        small = run(24, 200, sys.argv[1] + "/small")
        large = run(200, 3000, sys.argv[1] + "/large")
        print(*small, *large)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), str(tmp_path)], check=True, capture_output=True, text=True
    )
    fit_small, predict_small, fit_large, predict_large = (float(value) for value in done.stdout.split())
    assert fit_large - max(fit_small, predict_small) < 100  # MB; the draws are 700 MB more
    assert predict_large - max(fit_large, predict_small) < 40


def test_the_process_may_move_elsewhere(tmp_path, monkeypatch):
    """Draws are read from where they were written, whatever the path was relative to."""
    monkeypatch.chdir(tmp_path)
    posterior = fitted(METHODS[0], store="run")
    loaded = bnn.Posterior.load("run", net_of())
    expected = posterior.predict(X).mean
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert torch.equal(posterior.predict(X).mean, expected)
    assert torch.equal(loaded.predict(X).mean, expected)
