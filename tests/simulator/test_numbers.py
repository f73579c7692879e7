"""Bins of numbers, counts before a page, and averaged weights: what users of imported logs learn from."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from small_log import CONFIG, columns, writer
from test_simulator import CONFIG as RANDOM
from test_simulator import REAL_LOG, Exported, random_network, random_sessions

from edgerec_gym.answers import N_EXPOSURES, N_PAGE_VIEWS, PAGE_AGE, PAGE_SUMMARY
from edgerec_gym.errors import InputError
from edgerec_gym.logs.sessions import SessionStream
from edgerec_gym.logs.store import LogReader
from edgerec_gym.simulator.fit import fit, new_network
from edgerec_gym.simulator.inputs import numbers
from edgerec_gym.simulator.losses import fitted_heads
from edgerec_gym.simulator.statistics import LogStatistics
from edgerec_gym.simulator.trainer import AVERAGING, UserTrainer, batch_slots
from edgerec_gym.users.learned import LearnedUsers


def small_reader(folder):
    """A log of 60 sessions whose base ctr has few values, and mostly one."""
    w = writer(folder)
    table = columns([16] * 60)
    table["base_ctr"] = np.where(np.arange(960) % 4, 0.1, np.where(np.arange(960) % 8, 0.2, 0.3))
    table["base_cvr"] = np.full(960, 0.5)
    w.write(table)
    w.finish()
    return LogReader(folder)


def statistics(reader):
    stream, seen = SessionStream(reader, None), LogStatistics(reader.config, 0)
    for chunk in stream.chunks():
        seen.add(chunk)
    return stream, seen


def test_bins_are_quantiles_of_a_log(tmp_path):
    stream, seen = statistics(small_reader(tmp_path))
    [chunk] = stream.chunks()
    rows = chunk.answered_rows(np.arange(len(chunk)))
    found = chunk.cards(rows), chunk.user[chunk.session_of(rows)], chunk.summary[rows]
    values = numbers(CONFIG, *map(torch.from_numpy, found))
    assert values.shape[1] == 4 + 1 + 1 + len(PAGE_SUMMARY)
    card, user = (torch.from_numpy(part) for part in found[:2])
    np.testing.assert_allclose(values[:, 5], (card[:, :3] * user[:, :3]).sum(1), atol=1e-6)
    start, factor = (part.numpy() for part in seen.bins(4, page=True))
    np.testing.assert_allclose(start[0], np.quantile(values[:, 0], [0, 0.25, 0.5, 0.75]), atol=1e-6)
    np.testing.assert_allclose(start[0, 1:], start[0, :-1] + 1 / factor[0, :-1], atol=1e-6)
    assert (factor[1] > 0).sum() < 4 and factor[1].any()  # a frequent value
    assert not factor[2].any()  # never varies
    assert all(part.shape == (6, 4) for part in seen.bins(4, page=False))

    network = new_network(CONFIG, ("order_within_page",), seen, seed=0, bins=4)
    code = network.inputs.bin_code(*map(torch.from_numpy, found)).view(len(rows), -1, 4).numpy()
    assert code.min() == 0 and code.max() == 1
    # Bins hold equally many slots: the share of bins that a number has come through is its rank.
    rank = values[:, 0].numpy().argsort().argsort() / len(rows)
    np.testing.assert_allclose(code[:, 0].mean(1), rank, atol=0.1)
    assert (np.diff(code[values[:, 0].numpy().argsort(), 0], axis=0) >= -1e-6).all()


def test_users_know_what_was_seen_and_clicked_before_the_page():
    network = random_network(RANDOM, REAL_LOG, 1)
    batch = random_sessions(RANDOM, REAL_LOG, sessions=4, slots=9)
    plain = random_network(RANDOM, ("neighbours",), 1)
    assert len(network.inputs.count_scale) == 3 and not len(plain.inputs.count_scale)

    def clicks(context):
        with torch.no_grad():
            return network.forward_sequence(batch._replace(context=context))[0]["click_probability"][:9]

    wanted = clicks(batch.context)
    context = batch.context.clone()
    context[:, 6:, [N_EXPOSURES, N_PAGE_VIEWS]] += (context[:, 6:, PAGE_AGE, None] > 0) * 3.0
    np.testing.assert_allclose(clicks(context), wanted, atol=1e-6)  # what comes within a page is not read
    context[:, 6:, N_EXPOSURES] += 3.0
    changed = (clicks(context) - wanted).abs()
    assert not changed[:6].any() and changed[6:].min() > 1e-5


def test_weights_are_averaged_over_the_steps(tmp_path):
    stream, seen = statistics(small_reader(tmp_path / "log"))
    [chunk] = stream.chunks()
    network = new_network(CONFIG, ("leave",), seen, seed=0, hidden=8)
    weights = []

    class Watched(UserTrainer):
        def _step(self, *arguments):
            super()._step(*arguments)
            weights.append({k: v.detach().clone() for k, v in network.named_parameters()})

    heads = fitted_heads(frozenset(("leave",)))
    path = tmp_path / "member0.safetensors"
    trainer = Watched(network, stream, chunk, heads, bootstrap=None, seed=[0], path=path, averaged=True)
    start = {k: v.clone() for k, v in network.state_dict().items()}
    trainer.run_epoch(300, threading.Event())
    assert len(weights) >= 3
    for name, last in weights[-1].items():
        mean = start[name].double()
        for k, value in enumerate(weights, start=1):
            decay = min(AVERAGING, k / (k + 9))
            mean = decay * mean + (1 - decay) * value[name]
        np.testing.assert_allclose(trainer.best[name], mean, atol=1e-5)
        # Training goes on from the last weights.
        np.testing.assert_array_equal(network.state_dict()[name], last)


def test_an_imported_log_is_seen_as_a_whole(tmp_path):
    reader = small_reader(tmp_path / "log")
    figures = fit(reader.folder, tmp_path / "users", ensemble=2, epochs=1, hidden=8)
    assert figures["epochs"] == [1, 1]
    tensors = load_file(tmp_path / "users" / "simulator.safetensors")
    assert tensors["member1.bin_factor"].shape == (6, 8)
    assert batch_slots(100_000, bootstrap=False) > batch_slots(100_000)


def test_broken_bins_are_named(tmp_path):
    scenario = Exported(tmp_path, [random_network(RANDOM, REAL_LOG, 1, bins=3)], RANDOM)
    LearnedUsers(scenario)
    _, path = scenario.simulator_files()
    tensors = load_file(path)
    for name, bad in (
        ("bin_factor", tensors["member0.bin_factor"][:, :2]),
        ("bin_start", tensors["member0.bin_start"][0]),
        ("count_scale", tensors["member0.count_scale"][:2]),
        ("bin_factor", None),
    ):
        changed = {**tensors, f"member0.{name}": bad}
        save_file({k: v for k, v in changed.items() if v is not None}, path)
        path.touch()
        with pytest.raises(InputError, match=r"tensor 'member0\.(bin|count)_\w+' does not fit"):
            LearnedUsers(scenario)
