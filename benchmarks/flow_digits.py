"""Compares the learned flows on images: scikit-learn's digits, eight by eight pixels.

From the repository root::

    python -m benchmarks.flow_digits [--seeds 3] [--out FOLDER]
    python -m benchmarks.flow_digits --report    # table and figure from stored results

Flows, training, measures and settings are those of ``benchmarks.flow_samples``: nothing was tuned
here. About half of all pixels are 0. Gray levels are integers from 0 to 16. So that there is a
density, uniform noise of one level is added around each, and all are divided by 16. The true
density is not known, so the negative log likelihood of held-out images replaces the KL divergence.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from sklearn.datasets import load_digits

from benchmarks.cell import write_json
from benchmarks.flow_samples import KINDS, judge, sliced_w2, spread, train_on
from benchmarks.machine import versions
from benchmarks.report import markdown_table

LEVEL = 1 / 16
NEAR_ZERO = 0.5 * LEVEL  # pixels of level 0 are within this distance of 0
NUM_TEST, NUM_HELD = 600, 200
NUM_COPIES = 8  # copies of every training image, each with different noise
NUM_SHOWN = 8


def dequantized(rng: np.random.Generator, images: np.ndarray) -> np.ndarray:
    """Levels 0 to 16 (n, 64) with uniform noise of one level, divided by 16; float32."""
    return ((images + rng.uniform(-0.5, 0.5, images.shape)) * LEVEL).astype(np.float32)


def run(seed: int, kinds: list[str]) -> list[dict[str, Any]]:
    """Train and judge flows on one split of the images."""
    rng = np.random.default_rng(1000 + seed)
    images = rng.permutation(load_digits().data)
    test, held, learned = np.split(images, [NUM_TEST, NUM_TEST + NUM_HELD])
    data = dequantized(rng, np.tile(learned, (NUM_COPIES, 1)))
    held, test = dequantized(rng, held), dequantized(rng, test)
    rows = []
    for kind in kinds:
        result = train_on(kind, data, held, seed)
        measures, x = judge(result.flow, test, np.zeros(NUM_TEST), seed)
        measures["nll"] = measures.pop("kl")  # relative to a log density of 0
        row = {
            "flow": kind,
            "seed": seed,
            **measures,
            "near_zero": float((np.abs(x) < NEAR_ZERO).mean()),
            "true_near_zero": float((np.abs(test) < NEAR_ZERO).mean()),
            "floor_w2": sliced_w2(rng, data[:NUM_TEST], test),
            "seconds_per_step": float(np.diff(result.seconds).mean() / 50),
        }
        print(json.dumps(row), flush=True)
        if seed == 0:
            row["draws"] = x[:NUM_SHOWN].round(3).astype(float).tolist()
        rows.append(row)
    return rows


MEASURES = {
    "nll": "NLL (nats)",
    "sliced_w2": "sliced W2",
    "energy": "energy distance",
    "near_zero": "near zero",
}


def table(rows: list[dict[str, Any]]) -> str:
    """Mean and standard deviation over seeds of both flows, and of images of the training set."""
    lines = []
    for kind in KINDS:
        cell = [row for row in rows if row["flow"] == kind]
        speed = 1e3 * min(row["seconds_per_step"] for row in cell)
        line = [spread([row[measure] for row in cell]) for measure in MEASURES]
        lines.append([kind, *line, f"{speed:.0f}"])
    floor, share = (spread([row[key] for row in cell]) for key in ("floor_w2", "true_near_zero"))
    lines.append(["other images", "–", floor, "–", share, "–"])
    return markdown_table(["digits, d = 64", *MEASURES.values(), "ms per step"], lines)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw images and draws from both flows."""
    draws = {row["flow"]: np.asarray(row["draws"]) for row in rows if "draws" in row}
    shown = {"images": load_digits().data[:NUM_SHOWN] * LEVEL} | {k: draws[k] for k in KINDS}
    figure = Figure(figsize=(7.5, 3.2), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(len(shown), NUM_SHOWN)
    for line, (label, images) in zip(grid, shown.items(), strict=True):
        for axes, image in zip(line, images, strict=True):
            axes.imshow(image.reshape(8, 8), cmap="gray_r", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(label, fontsize="x-small")
    figure.savefig(path, dpi=110)


def report(folder: Path) -> None:
    """Write the table and the figure from the stored results."""
    rows = json.loads((folder / "flow_digits.json").read_text())["rows"]
    (folder / "flow_digits.md").write_text(table(rows) + "\n")
    draw(rows, folder / "flow_digits.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--report", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if not options.report:
        path = options.out / "flow_digits.json"
        content: dict[str, Any] = {"rows": [], "minutes": 0.0}
        if path.exists():
            content = json.loads(path.read_text())
        done = {(row["seed"], row["flow"]) for row in content["rows"]}
        for seed in range(options.seeds):
            start = time.perf_counter()
            content["rows"] += run(seed, [kind for kind in KINDS if (seed, kind) not in done])
            content["minutes"] += (time.perf_counter() - start) / 60
            write_json(path, content | {"versions": versions()})
    report(options.out)


if __name__ == "__main__":
    main()
