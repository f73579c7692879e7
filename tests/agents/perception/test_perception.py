"""Behaviour sequences: event by event equals all at once, padding does not matter, states are kept."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from edgerec_gym.agents.perception.perception import SEQUENCES, Perception, load_state, save_state
from edgerec_gym.config import FeedConfig
from edgerec_gym.errors import InputError
from edgerec_gym.spaces import N_EXPOSURE_COLUMNS, N_PAGE_VIEW_COLUMNS

CONFIG = FeedConfig(embedding_size=4, exposure_history=6, page_view_history=4)
COLUMNS = {"exposures": N_EXPOSURE_COLUMNS, "page_views": N_PAGE_VIEW_COLUMNS}
LENGTHS = {"exposures": 6, "page_views": 4}
N_CARD = CONFIG.n_item_features + CONFIG.n_types


def make(layers: int = 1, hidden: int = 8, **changes: object) -> Perception:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return Perception(CONFIG, hidden, layers, **changes).eval()  # type: ignore[arg-type]


def events(name: str, sessions: int, length: int, seed: int) -> torch.Tensor:
    """Rows (B, L, W) as the feed writes them."""
    rng = np.random.default_rng(seed)
    rows = rng.random((sessions, length, N_CARD + COLUMNS[name]), np.float32)
    rows[:, :, : CONFIG.embedding_size] = 2 * rows[:, :, : CONFIG.embedding_size] - 1
    rows[:, :, CONFIG.n_item_features : N_CARD] = 0
    rows[:, :, CONFIG.n_item_features] = 1
    return torch.from_numpy(rows)


def observe(lengths: list[tuple[int, int]], seed: int = 0, pad: str = "right") -> dict[str, torch.Tensor]:
    """Histories of sessions with so many exposures and page views, padded with zeros."""
    observation = {}
    for k, name in enumerate(SEQUENCES):
        rows = events(name, len(lengths), LENGTHS[name], seed + k)
        for row, length in enumerate(pair[k] for pair in lengths):
            if pad == "right":
                rows[row, length:] = 0
            else:
                rows[row] = torch.cat((torch.zeros_like(rows[row, length:]), rows[row, :length]))
        observation[name] = rows
    return observation


def test_four_encoders_fused_after_encoding() -> None:
    perception = make()
    grus = [m for m in perception.modules() if isinstance(m, torch.nn.GRU)]
    assert len(grus) == 4
    assert sorted(g.input_size for g in grus) == sorted([N_CARD, N_CARD, *COLUMNS.values()])
    codes = perception(observe([(3, 1), (6, 0)]))
    for name in SEQUENCES:
        assert codes[name].values.shape == (*codes[name].items.shape[:2], 16)
        assert torch.equal(codes[name].values[..., :8], codes[name].items)
    assert codes["exposures"].present.sum(1).tolist() == [3, 6]
    assert codes["page_views"].present.sum(1).tolist() == [1, 0]


def test_the_code_of_a_card_does_not_depend_on_actions() -> None:
    observation = observe([(5, 3)])
    changed = {name: rows.clone() for name, rows in observation.items()}
    changed["exposures"][0, 2, N_CARD:] += 0.3
    before, after = make()(observation)["exposures"], make()(changed)["exposures"]
    assert torch.equal(before.items, after.items)
    assert not torch.equal(before.values, after.values)


@pytest.mark.parametrize("with_actions", [True, False])
@pytest.mark.parametrize("layers", [1, 3])
@settings(max_examples=25, deadline=None)
@given(counts=st.lists(st.integers(0, 12), min_size=1, max_size=4), seed=st.integers(0, 1000))
def test_event_by_event_equals_all_at_once(
    with_actions: bool, layers: int, counts: list[int], seed: int
) -> None:
    """Also for sessions longer than the history: then the whole session is the reference."""
    perception = make(layers, with_actions=with_actions)
    state = perception.start(len(counts))
    for name in SEQUENCES:
        rows = events(name, len(counts), 12, seed)
        for at in range(12):
            sessions = torch.tensor([s for s, count in enumerate(counts) if at < count], dtype=torch.int64)
            if len(sessions):
                perception.append(state, name, sessions, rows[sessions, at])
        found = perception.codes(state)[name]
        for s, count in enumerate(counts):
            kept = min(count, LENGTHS[name])
            assert int(found.present[s].sum()) == kept
            if not count:
                continue
            with torch.no_grad():
                whole = perception.encoders[name](rows[s : s + 1, :count])
            for part in ("items", "values"):
                expected = getattr(whole, part)[0, count - kept : count]
                torch.testing.assert_close(getattr(found, part)[s, :kept], expected, atol=1e-5, rtol=0)


@settings(max_examples=25, deadline=None)
@given(
    lengths=st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), min_size=1, max_size=5),
    seed=st.integers(0, 1000),
)
def test_padding_on_either_side_gives_the_same_codes(lengths: list[tuple[int, int]], seed: int) -> None:
    perception = make()
    right, left = (perception(observe(lengths, seed, pad)) for pad in ("right", "left"))
    for name in SEQUENCES:
        present = right[name].present
        assert torch.equal(present, left[name].present)
        torch.testing.assert_close(right[name].values[present], left[name].values[present], atol=1e-6, rtol=0)


def test_an_event_costs_the_same_in_a_long_session() -> None:
    """The state never grows."""
    perception = make()
    state = perception.start(1)
    shapes = {field: tensor.shape for field, tensor in vars(state["exposures"]).items()}
    for row in events("exposures", 1, 50, 0)[0]:
        perception.append(state, "exposures", torch.tensor([0]), row[None])
    assert {field: tensor.shape for field, tensor in vars(state["exposures"]).items()} == shapes
    assert state["exposures"].count.tolist() == [50]


def filled(perception: Perception) -> dict:
    state = perception.start(2)
    for name in perception.sequences:
        for at in range(9):
            rows = events(name, 2, 9, 5)[:, at]
            perception.append(state, name, torch.arange(2), rows)
    return state


def test_a_saved_state_goes_on_where_it_was(tmp_path: Path) -> None:
    perception = make()
    state = filled(perception)
    save_state(tmp_path / "state.safetensors", state)
    loaded = load_state(tmp_path / "state.safetensors", perception)
    row = events("exposures", 2, 1, 7)[:, 0]
    for s in (state, loaded):
        perception.append(s, "exposures", torch.arange(2), row)
    for name in SEQUENCES:
        assert torch.equal(perception.codes(state)[name].values, perception.codes(loaded)[name].values)


def test_a_state_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    perception, path = make(), tmp_path / "state.safetensors"
    with pytest.raises(InputError, match="does not exist"):
        load_state(path, perception)
    save_state(path, filled(perception))
    with pytest.raises(
        InputError, match=r"hidden' is torch.float32 \[1, 2, 8\]; this model needs .*\[1, 2, 4\]"
    ):
        load_state(path, make(hidden=4))
    with pytest.raises(InputError, match="tensor 'page_views.*' does not fit"):
        load_state(path, make(sequences=("exposures",)))
    tensors = load_file(path)
    tensors["exposures.items"][0, 0, 0] = torch.nan
    save_file(tensors, path)
    with pytest.raises(InputError, match="'exposures.items' holds values that are not finite"):
        load_state(path, perception)
    path.write_bytes(b"half a file")
    with pytest.raises(InputError, match="not a readable safetensors file"):
        load_state(path, perception)
