"""Do the teachers reproduce published figures on MovieLens 100k?

    python -m benchmarks.teachers_ml100k FOLDER [--seeds 3] [--work FOLDER] [--quick]

FOLDER holds RecBole's atomic files ml-100k.inter, .user and .item. Three published protocols, one a teacher:

- LightGCN: Recommenders' comparison (github.com/recommenders-team/recommenders, README): every rating is a
  choice, 75 % of each user's rows train, all items but those are ranked, cut-off 10, 15 epochs.
- SASRec: RecBole's default for sequences: the last row of a user is the test, the last but one the
  validation, all items are ranked, also those seen. Published: a RecBole run in
  github.com/kanishkaRandunu/pswrec2k26 (test), and UniRec's in recommenders-team/recommenders#2111
  (validation).
- DeepFM: RecBole's protocol for clicks: a rating of 4 or 5 is a click, 80 : 10 : 10 of each user's rows at
  random, AUC over all test rows. Published: DCN, a close relative, in RUCAIBox/RecBole#2117.

Popularity and ItemKNN stand beside them. Epochs are chosen on validation rows, except LightGCN's 15.
Intervals are over seeds (twice the standard error). Writes benchmarks/results/teachers_ml100k.json. What is
finished is kept in --work; the same command resumes.
"""

from __future__ import annotations

import argparse
import copy
import platform
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from rich.console import Console
from rich.table import Table

import edgerec_gym
from edgerec_gym.agents.learning.tensors import torch_seed, torch_threads
from edgerec_gym.agents.teachers.deepfm import DeepFM
from edgerec_gym.agents.teachers.light_gcn import EdgeSampler, LightGCN, normalised_adjacency, train_epoch
from edgerec_gym.agents.teachers.sasrec import SASRec
from edgerec_gym.documents import read_object
from edgerec_gym.errors import InputError
from edgerec_gym.evaluation.ranking import auc
from edgerec_gym.files import make_folder, write_json

RESULTS = Path(__file__).parent / "results" / "teachers_ml100k.json"
CUT = 10
PUBLISHED: dict[str, dict[str, float]] = {
    "LightGCN": {"ndcg": 0.419846, "precision": 0.379626, "recall": 0.144336},
    "SASRec": {"hit": 0.1198, "ndcg": 0.0594},
    "SASRec, validation": {"hit": 0.1289, "ndcg": 0.0727},
    "DeepFM": {"auc": 0.78},
}
Figures = dict[str, float]


def read(folder: Path, part: str) -> pl.DataFrame:
    """Read one of RecBole's files; its header gives a type after each name."""
    path = folder / f"ml-100k.{part}"
    if not path.is_file():
        raise InputError(f"{path} is missing; {folder} must hold RecBole's files of ml-100k")
    frame = pl.read_csv(path, separator="\t", infer_schema_length=0)
    return frame.rename({name: name.partition(":")[0] for name in frame.columns})


def ratings(folder: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return user and item from 0, rating and time of every row."""
    frame = read(folder, "inter")
    user, item = (frame[name].cast(pl.Int64).to_numpy() for name in ("user_id", "item_id"))
    rating, time = (frame[name].cast(pl.Float64).to_numpy() for name in ("rating", "timestamp"))
    return np.unique(user, return_inverse=True)[1], np.unique(item, return_inverse=True)[1], rating, time


def ranked_figures(score: np.ndarray, seen: np.ndarray, wanted: np.ndarray) -> Figures:
    """Return NDCG, precision, recall and hit rate at 10, means over users with anything wanted.

    Args:
        score: (V, I).
        seen: (V, I) bool, left out of the ranking.
        wanted: (V, I) bool.
    """
    some = wanted.any(1)
    score, wanted = np.where(seen, -np.inf, score)[some], wanted[some]
    top = np.argsort(-score, axis=1, kind="stable")[:, :CUT]
    found = np.take_along_axis(wanted, top, 1)
    discount = 1 / np.log2(np.arange(CUT) + 2)
    count = wanted.sum(1)
    ideal = np.cumsum(discount)[np.minimum(count, CUT) - 1]
    return {
        "ndcg": float((found @ discount / ideal).mean()),
        "precision": float(found.mean()),
        "recall": float((found.sum(1) / count).mean()),
        "hit": float(found.any(1).mean()),
    }


def per_user_split(user: np.ndarray, shares: tuple[float, ...], rng: np.random.Generator) -> np.ndarray:
    """Return the part of each row, (n,) int64: every user's rows are divided at random by the shares."""
    order = np.lexsort((rng.random(len(user)), user))
    size = np.bincount(user)
    place = np.arange(len(user)) - (np.cumsum(size) - size)[user[order]]
    bounds = np.round(np.cumsum(shares[:-1])[:, None] * size[user[order]])
    part = np.empty(len(user), np.int64)
    part[order] = (place >= bounds).sum(0)
    return part


def matrix(user: np.ndarray, item: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Return who chose what, (V, I) bool."""
    found = np.zeros(shape, np.bool_)
    found[user, item] = True
    return found


def item_knn(train: np.ndarray, neighbours: int = 100) -> np.ndarray:
    """Return scores of ItemKNN with cosine similarity."""
    x = train.astype(np.float64)
    norm = np.sqrt(x.sum(0)) + 1e-9
    similar = (x.T @ x) / norm / norm[:, None]
    np.fill_diagonal(similar, 0)
    least = np.sort(similar, axis=1)[:, -neighbours][:, None]
    return x @ np.where(similar >= least, similar, 0).T


def light_gcn(rows: Any, seed: int, quick: bool) -> dict[str, Figures]:
    """Recommenders' protocol, with its settings."""
    user, item, *_ = rows
    shape = int(user.max() + 1), int(item.max() + 1)
    rng = np.random.default_rng(seed)
    part = per_user_split(user, (0.75, 0.25), rng)
    train, test = (matrix(user[part == p], item[part == p], shape) for p in (0, 1))
    users_of, items_of = np.nonzero(train)
    with torch_seed(seed):
        model = LightGCN(normalised_adjacency(users_of, items_of, shape[0], shape[1]), shape[0])
    sampler = EdgeSampler(users_of, items_of, shape[1])
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)
    for _ in range(2 if quick else 15):
        train_epoch(model, sampler, optimizer, rng, batch_size=1024, penalty=1e-4)
    with torch.inference_mode():
        users, items = model()
    popular = np.broadcast_to(train.sum(0), shape)
    return {
        "LightGCN": ranked_figures((users @ items.T).numpy(), train, test),
        "popularity, random split": ranked_figures(popular, train, test),
        "ItemKNN, random split": ranked_figures(item_knn(train), train, test),
    }


def best_epoch(
    model: torch.nn.Module, epoch: Callable[[], None], figure: Callable[[], float], most: int
) -> None:
    """Train until the figure has not improved for 8 epochs, then restore the best parameters."""
    best, state, waited = -np.inf, copy.deepcopy(model.state_dict()), 0
    for _ in range(most):
        model.train()
        epoch()
        model.eval()
        with torch.inference_mode():
            now = figure()
        if now > best:
            best, state, waited = now, copy.deepcopy(model.state_dict()), 0
        else:
            waited += 1
        if waited == 8:
            break
    model.load_state_dict(state)
    model.eval()


def sasrec(rows: Any, seed: int, quick: bool, length: int = 50) -> dict[str, Figures]:
    """Leave one out, all items ranked."""
    user, item, _, time = rows
    shape = int(user.max() + 1), int(item.max() + 1)
    order = np.lexsort((item, time, user))
    size = np.bincount(user)
    first = np.cumsum(size) - size
    sequences = [item[order][a : a + n] + 1 for a, n in zip(first, size, strict=True)]

    def padded(parts: list[np.ndarray]) -> torch.Tensor:
        kept = np.zeros((len(parts), length), np.int64)
        for row, part in enumerate(parts):
            last = part[-length:]
            kept[row, length - len(last) :] = last
        return torch.from_numpy(kept)

    windows = [
        s[max(0, end - length - 1) : end] for s in sequences for end in range(len(s) - 2, 1, -length)
    ]  # of the training rows, which end before the last two
    inputs, targets = padded([w[:-1] for w in windows]), padded([w[1:] for w in windows])
    with torch_seed(seed):
        model = SASRec(shape[1], length, dropout=0.3)
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
        rng = np.random.default_rng(seed)

        def epoch() -> None:
            shuffled = torch.from_numpy(rng.permutation(len(inputs)))
            for at in range(0, len(inputs), 64):
                loss = model.loss(inputs[shuffled[at : at + 64]], targets[shuffled[at : at + 64]])
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()

        nothing = np.zeros(shape, np.bool_)

        def figures(left_out: int) -> Figures:
            known, wanted = padded([s[:-left_out] for s in sequences]), nothing.copy()
            wanted[np.arange(shape[0]), [s[-left_out] - 1 for s in sequences]] = True
            with torch.inference_mode():
                return ranked_figures(model.score(known).numpy(), nothing, wanted)

        best_epoch(model, epoch, lambda: figures(2)["ndcg"], 2 if quick else 40)
        test, valid = figures(1), figures(2)
    counts = np.bincount(np.concatenate([s[:-2] for s in sequences]) - 1, minlength=shape[1])
    wanted = nothing.copy()
    wanted[np.arange(shape[0]), [s[-1] - 1 for s in sequences]] = True
    popular = ranked_figures(np.broadcast_to(counts, shape), nothing, wanted)
    return {"SASRec": test, "SASRec, validation": valid, "popularity, last row": popular}


def fields(folder: Path, user: np.ndarray, item: np.ndarray) -> tuple[np.ndarray, list[int]]:
    """Return values (n, M, W) int64 of ids, age, gender, occupation, year, genres; -1 for none."""
    users, items = read(folder, "user"), read(folder, "item")
    users = users.sort(pl.col("user_id").cast(pl.Int64))
    items = items.sort(pl.col("item_id").cast(pl.Int64))
    columns: list[np.ndarray] = [user[:, None], item[:, None]]
    sizes = [int(user.max() + 1), int(item.max() + 1)]
    for table, at, names in (
        (users, user, ("age", "gender", "occupation")),
        (items, item, ("release_year",)),
    ):
        for name in names:
            known, code = np.unique(table[name].fill_null("").to_numpy(), return_inverse=True)
            columns.append(code[at][:, None])
            sizes.append(len(known))
    genres = [str(text or "").split() for text in items["class"]]
    names_of = sorted({genre for own in genres for genre in own})
    codes = np.full((len(genres), max(map(len, genres))), -1, np.int64)
    for row, own in enumerate(genres):
        codes[row, : len(own)] = [names_of.index(genre) for genre in own]
    columns.append(codes[item])
    sizes.append(len(names_of))
    values = np.full((len(user), len(columns), codes.shape[1]), -1, np.int64)
    for k, column in enumerate(columns):
        values[:, k, : column.shape[1]] = column
    return values, sizes


def deepfm(rows: Any, seed: int, quick: bool, folder: Path) -> dict[str, Figures]:
    """Clicks are ratings of 4 and 5; AUC over all test rows."""
    user, item, rating, _ = rows
    found, sizes = fields(folder, user, item)
    values, click = torch.from_numpy(found), torch.from_numpy((rating >= 4).astype(np.float32))
    rng = np.random.default_rng(seed)
    part = per_user_split(user, (0.8, 0.1, 0.1), rng)
    train, valid, test = (torch.from_numpy(np.flatnonzero(part == p)) for p in range(3))
    with torch_seed(seed):
        model = DeepFM(sizes, dropout=0.4)
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, weight_decay=1e-5)

        def epoch() -> None:
            shuffled = train[torch.from_numpy(rng.permutation(len(train)))]
            for rows_ in shuffled.split(512):
                loss = torch.nn.functional.binary_cross_entropy_with_logits(
                    model(values[rows_]), click[rows_]
                )
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()

        def figure(on: torch.Tensor) -> float:
            with torch.inference_mode():
                return auc(model(values[on]).numpy(), click[on].numpy() > 0)

        best_epoch(model, epoch, lambda: figure(valid), 2 if quick else 60)
        result = figure(test)
    clicks = np.bincount(item[part == 0], rating[part == 0] >= 4, minlength=sizes[1])
    rate = (clicks + 1) / (np.bincount(item[part == 0], minlength=sizes[1]) + 2)
    popular = auc(rate[item[part == 2]], rating[part == 2] >= 4)
    return {"DeepFM": {"auc": result}, "rate of the item, rows at random": {"auc": popular}}


def summary(rows: list[Figures]) -> dict[str, dict[str, float]]:
    """Return mean and twice the standard error over seeds of each figure."""
    out = {}
    for name in rows[0]:
        values = np.array([row[name] for row in rows])
        error = 2 * values.std(ddof=1) / np.sqrt(len(values)) if len(values) > 1 else float("nan")
        out[name] = {"mean": float(values.mean()), "error": float(error)}
    return out


def main() -> None:
    """Train, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=Path("runs/teachers-ml100k"), help="what is finished")
    parser.add_argument("--quick", action="store_true", help="one seed, two epochs; nothing is written")
    arguments = parser.parse_args()
    rows, quick, work = ratings(arguments.folder), arguments.quick, arguments.work
    parts: dict[str, Callable[[int], dict[str, Figures]]] = {
        "light_gcn": lambda seed: light_gcn(rows, seed, quick),
        "sasrec": lambda seed: sasrec(rows, seed, quick),
        "deepfm": lambda seed: deepfm(rows, seed, quick, arguments.folder),
    }
    found: dict[str, list[Figures]] = {}
    with torch_threads(1):
        for seed in range(1 if quick else arguments.seeds):
            for part, run in parts.items():
                kept = work / f"{part}-{seed}.json"
                if quick or not kept.is_file():
                    models = run(seed)
                    if not quick:
                        write_json(make_folder(work) / kept.name, models)
                else:
                    models = read_object(kept, dict[str, Figures])
                for name, figures in models.items():
                    found.setdefault(name, []).append(figures)
                    print(name, seed, {key: round(value, 4) for key, value in figures.items()}, flush=True)
    results = {name: summary(figures) for name, figures in found.items()}
    table = Table("model", "figure", "here, ± twice the standard error", "published")
    for name, means in results.items():
        for figure, value in means.items():
            published = PUBLISHED.get(name, {}).get(figure)
            told = "" if published is None else f"{published:.4f}"
            table.add_row(name, figure, f"{value['mean']:.4f} ± {value['error']:.4f}", told)
    Console(width=120).print(table)
    if not quick:
        about = {
            "seeds": arguments.seeds,
            "edgerec_gym": edgerec_gym.__version__,
            "torch": torch.__version__,
            "machine": f"{platform.machine()}, Python {platform.python_version()}",
        }
        write_json(RESULTS, {"about": about, "published": PUBLISHED, "results": results})


if __name__ == "__main__":
    main()
