import pytest

from edgerec_gym.config import FeedConfig, RewardConfig, SyntheticUserConfig, preset
from edgerec_gym.errors import InputError


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"page_sise": 10}, "did you mean 'page_size'"),
        ({"page_size": 1}, "FeedConfig.page_size = 1 is out of range; allowed: 2 to 500"),
        ({"page_size": "ten"}, "FeedConfig.page_size must be a number"),
        ({"page_size": 10.5}, "must be a whole number"),
        ({"page_size": float("nan")}, "must be a whole number|out of range"),
        ({"pool_size": 40}, "could run dry"),
        ({"request_latency": 60}, "must be below page_size"),
        ({"rules": "maybe"}, "must be one of mask, penalty"),
        ({"share_caps": (0.1,)}, "share_caps has 1 entries"),
        ({"share_caps": (0.1, 0.1, 0.1, 7.0)}, r"share_caps\[3\] = 7.0 is out of range"),
        ({"gaps": 3}, "gaps must be a list"),
        ({"reward": {"clik": 1.0}}, "RewardConfig has no field 'clik'; did you mean 'click'"),
        ({"reward": 3}, "reward must be a RewardConfig"),
        ({"cloud": {"sync": "never"}}, "must be one of page, periodic, incremental"),
        ({"request_budget": -1}, "out of range"),
    ],
)
def test_bad_values_name_the_field_and_what_is_allowed(changes, message):
    with pytest.raises(InputError, match=message):
        FeedConfig().replace(**changes)


@pytest.mark.parametrize("name", ["default", "lite"])
def test_dict_round_trip(name):
    for config in preset(name):
        assert type(config).from_dict(config.to_dict()) == config


def test_replace_keeps_nested_configs_and_accepts_dicts():
    config = FeedConfig().replace(reward={"request": -1.0}, request_budget=None)
    assert config.reward == RewardConfig(request=-1.0)
    assert config.cloud == FeedConfig().cloud


def test_unknown_preset():
    with pytest.raises(InputError, match="presets are default, lite"):
        preset("huge")


def test_numbers_are_coerced_to_the_fields_type():
    config = SyntheticUserConfig(n_items=1000.0, taste=1)
    assert isinstance(config.n_items, int) and isinstance(config.taste, float)
