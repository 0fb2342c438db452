"""Draws on disk: ``fit(store=...)`` against the same fit in memory, what a crash leaves, and the memory it takes."""

import json
import shutil
import subprocess
import sys
import textwrap

import pytest
import torch
from torch import nn

import bayesnn as bnn

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
    weights = [one.to_arviz().posterior for one in (memory, disk)]
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


def test_a_directory_with_a_posterior_is_not_written_over(tmp_path):
    fitted(bnn.MAP()).save(tmp_path)
    before = (tmp_path / "manifest.json").read_bytes()
    with pytest.raises(ValueError, match="Expected a directory without a posterior for store="):
        fitted(bnn.MAP(), store=tmp_path)
    assert (tmp_path / "manifest.json").read_bytes() == before


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
        import bayesnn.kept
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
