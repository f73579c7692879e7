"""What a preset leaves to learn, and training on the ground truth: both measure what they say."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from benchmarks.preset_room import measure, variant
from benchmarks.values_on_truth import AskedTruth
from edgerec_gym.agents.values.network import ValueConfig
from edgerec_gym.agents.values.play import play_labelled
from edgerec_gym.agents.values.train import make_network
from edgerec_gym.commands.policies import assignments
from edgerec_gym.config import preset
from edgerec_gym.registration import make_feeds
from edgerec_gym.scenario import Scenario


def test_a_variant_differs_from_its_preset_as_asked(tmp_path: Path) -> None:
    users, cloud = assignments(["satiation=2"]), assignments(["interest_decay=0.5"])
    world = variant("lite", users, cloud, tmp_path, 60, 0)
    feed, synthetic = preset("lite")
    assert world.synthetic == synthetic.replace(satiation=2.0)
    assert world.config.cloud == feed.cloud.replace(interest_decay=0.5)
    assert "click_lift" in world.config.item_columns
    found = measure(world, "EdgeFeedRerank-v0", 8, 0)
    assert list(found) == ["keep", "device-greedy", "item-greedy", "attainable", "oracle"]
    assert found["attainable"]["attainable_gap_closed"]["mean"] == pytest.approx(1.0)
    assert found["oracle"]["gap_closed"]["mean"] == pytest.approx(1.0)
    gain = found["oracle"]["value"]["mean"] / found["keep"]["value"]["mean"] - 1
    assert found["oracle"]["relative_gain"] == pytest.approx(gain, abs=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("track", ["rerank", "joint"])
def test_the_ground_truth_tells_what_it_answers(lite: Scenario, track: str) -> None:
    """The card that is placed gets the probabilities that are told for it; the others get other ones."""
    network = make_network(lite.config, ValueConfig(hidden=8, keys=4, heads=2, queries=2))
    users = AskedTruth(lite, 4)
    env = make_feeds(track, 8, scenario=lite, users=users, copy=False)
    found = play_labelled(
        network,
        env,
        users,  # type: ignore[arg-type]
        np.arange(8),
        best=0.5,
        noise=np.ones(8),
        generator=np.random.default_rng(0),
    )
    told = lite.config.reward.value(found.click[..., 0], found.purchase[..., 0]).sum(1)
    assert np.allclose(told, found.value, atol=1e-5)
    at = found.answered
    assert (found.click[at] > 0).all() and (found.click[at].std(-1) > 0).all()
