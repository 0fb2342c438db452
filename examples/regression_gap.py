"""What three methods say where there are no data: a sine with a gap in the middle.

    python examples/regression_gap.py

A method that knows what it does not know is wide in the gap and narrow on the data.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure

import bayesnn as bnn

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--epochs", type=int, default=8000)
parser.add_argument("--out", type=Path, default=Path("results/regression_gap"))
options = parser.parse_args()
options.out.mkdir(parents=True, exist_ok=True)

train, test = bnn.data.load("sine-gap")  # x (80, 1) standardised, y (80,) in its own units
low, high = bnn.data.sine_gap_region(train)  # where there is no x, in the units of train.x
gap = torch.linspace(low, high, 52)[1:-1, None]  # (50, 1)
grid = torch.linspace(1.3 * float(train.x.min()), 1.3 * float(train.x.max()), 200)[:, None]  # (200, 1)
axis = train.inputs.inverse(grid).flatten()  # (200,)


class ScaledMLP(torch.nn.Module):
    """Any module will do. This one carries its scales itself, so that every weight has the prior N(0, 1)."""

    def __init__(self, width: int = 20) -> None:
        super().__init__()
        self.hidden, self.output = torch.nn.Linear(1, width), torch.nn.Linear(width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        units = torch.tanh(4 * x @ self.hidden.weight.T + 3 * self.hidden.bias)  # (batch, width): steep enough to turn
        return self.output(units) / 4  # (batch, 1)


# The noise's standard deviation is inferred with the weights; the truth is 0.1.
model = bnn.BayesianModel(ScaledMLP(), bnn.priors.Normal(1.0), bnn.likelihoods.Normal())
# With 80 rows a full batch costs nothing, and SGLD's gradients are exact.
# Mean-field VI is known to miss the gap (Foong et al. 2019, "in-between uncertainty"): it can only widen every weight.
methods = {
    "MAP": bnn.MAP(lr=1e-2),
    "mean-field VI": bnn.MeanFieldVI(mc_samples=4),
    "SGLD": bnn.SGLD(lr=2e-3, burn_in=0.3),
}

figure = Figure(figsize=(14, 4.6), layout="constrained")
panels = figure.subplots(1, 3, sharey=True)
print(f"{'method':<15}{'epistemic sd in the gap':>25}{'on the data':>13}{'noise sd':>10}{'test RMSE':>11}")
for panel, (name, method) in zip(panels, methods.items(), strict=True):
    posterior = bnn.fit(model, train, method, epochs=options.epochs, batch_size=None, seed=0)
    inside, on_data, at_test = (posterior.predict(x) for x in (gap, train.x, test.x))
    in_gap = inside.epistemic.sqrt().mean()  # (), units of y
    at_data = on_data.epistemic.sqrt().mean()
    noise = on_data.aleatoric.sqrt().mean()
    rmse = bnn.metrics.rmse(at_test.mean, test.y)
    print(f"{name:<15}{in_gap:>25.3f}{at_data:>13.3f}{noise:>10.3f}{rmse:>11.3f}")

    predictive = posterior.predict(grid)
    lower, upper = predictive.quantile((0.05, 0.95))  # (200,) each: of a new target, noise included
    inner = predictive.quantile((0.05, 0.95), noise=False)  # (2, 200): of the function alone
    bnn.plots.predictive_band(axis, predictive.mean, lower, upper, inner[0], inner[1],
                              data=(train.inputs.inverse(train.x).flatten(), train.y), truth=torch.sin(4 * axis),
                              ax=panel, level=0.9)  # fmt: skip
    panel.set_title(name)
    panel.get_legend().remove()  # one below all three
    panel.label_outer()

# Weights of a net need not agree between chains (units can change places); the function has to.
rhat = bnn.diagnostics.rhat(predictive.draws)  # draws (chain, draw, 200) -> (200,)
print(f"SGLD, R-hat of the function over {len(rhat)} inputs: median {np.median(rhat):.3f}, largest {np.max(rhat):.3f}")

panels[0].set_ylim(-3, 3)
figure.legend(*panels[0].get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
figure.savefig(options.out / "band.png", dpi=150)
print(f"picture: {options.out / 'band.png'}")
