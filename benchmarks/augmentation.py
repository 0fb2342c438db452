"""What augmentation does for LeNet5 on few digits, and what it costs beside a step.

OMP_NUM_THREADS=1 python benchmarks/augmentation.py [--rows 500] [--steps 400] [--data mnist]
"""

from __future__ import annotations

import argparse
import statistics
import time
from dataclasses import replace

import torch

import bayesnn as bnn
from bayesnn import nets
from bayesnn.data import Compose, Crop, InUnits, Rotation, Shift

AUGMENT = Compose(Rotation(15), Shift(2))


def load(name: str, rows: int) -> tuple[bnn.data.Data, bnn.data.Data]:
    train, test = bnn.data.load(name)
    return replace(train, x=train.x[:rows], y=train.y[:rows]), replace(test, x=test.x[:2000], y=test.y[:2000])


def model_for(data: bnn.data.Data) -> bnn.BayesianModel:
    return bnn.BayesianModel(nets.LeNet5(data.in_shape, data.num_outputs), likelihood=bnn.likelihoods.Categorical())


def scores(train: bnn.data.Data, test: bnn.data.Data, steps: int) -> None:
    epochs = round(steps / -(-len(train) // 64))
    methods = {
        "MAP": (bnn.MAP(schedule="cosine"), {}),
        "SGHMC": (bnn.SGHMC(draws=30), {"chains": 1}),
        "SGHMC, T = 0.1": (bnn.SGHMC(draws=30, temperature=0.1), {"chains": 1}),
        "SGHMC, num_data = 4 N": (bnn.SGHMC(draws=30), {"chains": 1, "num_data": 4 * len(train)}),
    }
    print(f"{len(train)} rows of {train.name}, LeNet5, {epochs} epochs of {-(-len(train) // 64)} steps, seed 0")
    print("| method | augmentation | accuracy | NLL | NLL, T = 8 transforms in the test |\n|---|---|---|---|---|")
    for name, (method, options) in methods.items():
        for augment in (None, AUGMENT):
            how = {"epochs": epochs, "augment": augment, "progress": False, **options}
            posterior = bnn.fit(model_for(train), train, method, **how)
            plain = posterior.predict(test.x)
            accuracy = float((plain.mean.argmax(-1) == test.y).float().mean())
            averaged = posterior.predict(test.x, draws=10, augment=AUGMENT)
            nll, tta = (-float(p.log_prob(test.y).mean()) for p in (plain, averaged))
            print(f"| {name} | {augment is not None} | {accuracy:.3f} | {nll:.3f} | {tta:.3f} |", flush=True)


def cost(train: bnn.data.Data, repeats: int = 60) -> None:
    """Medians, measured turn by turn, of a step (forward, backward, Adam) on 64 rows and of the transforms of them."""
    model, x, y = model_for(train), train.x[:64], train.y[:64]
    optimizer, stream = torch.optim.Adam(model.parameters(), fused=True), torch.Generator().manual_seed(0)

    def step() -> None:
        optimizer.zero_grad()
        model.mean_nll(x, y).backward()
        optimizer.step()

    transforms = {"Rotation(15)": Rotation(15), "Shift(2)": Shift(2), "Crop(2)": Crop(2), "both": AUGMENT}
    work = {"step": step} | {
        name: lambda t=t: InUnits(t, train.inputs)(x, stream)  # type: ignore[misc]
        for name, t in transforms.items()
    }
    times: dict[str, list[float]] = {name: [] for name in work}
    for _ in range(repeats):
        for name, call in work.items():
            began = time.process_time()  # of this process: the machine may have others
            call()
            times[name].append(time.process_time() - began)
    for name, values in times.items():
        share = statistics.median(values) / statistics.median(times["step"])
        print(f"{name}: {1e3 * statistics.median(values):.2f} ms, {share:.0%} of a step")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="mnist")
    parser.add_argument("--rows", type=int, default=500)
    parser.add_argument("--steps", type=int, default=400)
    args = parser.parse_args()
    torch.set_num_threads(1)
    train, test = load(args.data, args.rows)
    cost(train)
    scores(train, test, args.steps)


if __name__ == "__main__":
    main()
