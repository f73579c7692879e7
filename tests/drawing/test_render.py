"""Every id in every render mode: frames, text, the window, and the screen that they show."""

import sys
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
from actions import keep_action, random_action
from gymnasium.wrappers import RecordVideo

import edgerec_gym  # noqa: F401  (registers the ids)
from edgerec_gym.drawing.colours import category_colours
from edgerec_gym.drawing.phone import HEIGHT, WIDTH
from edgerec_gym.drawing.render import screen_text
from edgerec_gym.drawing.screen import ScreenRecorder
from edgerec_gym.errors import InputError, MissingExtraError
from edgerec_gym.registration import make_feeds, track_of
from edgerec_gym.spaces import CONTEXT
from edgerec_gym.state import NO_ITEM

JOINT = "EdgeFeed-v0"


def make(env_id, mode, users="synthetic", **options):
    return gym.make(env_id, scenario="lite", users=users, render_mode=mode, **options)


def play(env, steps, seed=0, choose=random_action):
    """Yield after the reset and after every step, until the session ends."""
    rng = np.random.default_rng(seed)
    observation, info = env.reset(seed=seed)
    yield observation, info
    for _ in range(steps):
        observation, _, terminated, truncated, info = env.step(choose(env, observation, rng))
        yield observation, info
        if terminated or truncated:
            return


def test_frames(env_id, users):
    """Of one shape, the same for the same session, and another one after every step."""
    runs = []
    for _ in range(2):
        env = make(env_id, "rgb_array", users)
        runs.append([env.render() for _ in play(env, 5)])
    for frame, again in zip(*runs, strict=True):
        assert frame.shape == (HEIGHT, WIDTH, 3) and frame.dtype == np.uint8
        assert np.array_equal(frame, again)
    assert len({frame.tobytes() for frame in runs[0]}) == len(runs[0])


def test_text(env_id, users):
    env = make(env_id, "ansi", users)
    for _ in play(env, 3):
        text, screen = env.render(), env.unwrapped.screen()
        assert f"slot {screen.slot} of 60 " in text
        assert ("intent" in text) == (users == "synthetic")
    if screen.end is None:
        assert text.count("on screen") == 2


def test_window(env_id):
    """It opens by itself, shows every slot, and render() returns nothing."""
    pygame = pytest.importorskip("pygame")
    env = make(env_id, "human")
    env.unwrapped._vector._renderer._window.fps = 0  # as fast as possible
    for _ in play(env, 2):
        assert env.render() is None
        assert pygame.display.get_surface().get_size() == (WIDTH, HEIGHT)
        shown = pygame.surfarray.array3d(pygame.display.get_surface()).swapaxes(0, 1)
        expected = make_frame(env)
        assert np.array_equal(shown, expected)
    env.close()
    assert pygame.display.get_surface() is None


def make_frame(env):
    from edgerec_gym.drawing.phone import frame

    return frame(env.unwrapped.screen(), category_colours(env.unwrapped.scenario.catalog))


def test_without_a_mode_nothing_is_recorded_and_with_one_nothing_changes(env_id, users):
    plain, drawn = make(env_id, None, users), make(env_id, "rgb_array", users)
    assert plain.unwrapped.batch.watcher is None and plain.unwrapped.render() is None
    with pytest.raises(InputError, match="render_mode"):
        plain.unwrapped.screen()
    for (a, info_a), (b, info_b) in zip(play(plain, 15), play(drawn, 15), strict=True):
        assert all(np.array_equal(a[key], b[key]) for key in a)
        assert info_a.keys() == info_b.keys()
        assert all(np.array_equal(info_a[key], info_b[key]) for key in info_a)


def test_the_screen_agrees_with_observation_and_info(slot_id, users):
    env = make(slot_id, "ansi", users)
    config, names, total, clicks = env.unwrapped.config, ("goods", *env.unwrapped.config.card_types), 0.0, 0
    for observation, info in (moment for seed in range(3) for moment in play(env, 60, seed=seed)):
        screen = env.unwrapped.screen()
        total = 0.0 if not screen.cards else total + sum(info["reward_terms"].values())
        assert screen.reward == pytest.approx(total) and sum(screen.terms.values()) == pytest.approx(total)
        context = dict(zip(CONTEXT, observation["context"], strict=False))
        assert screen.slot == len(screen.cards) == round(context["slot"] * config.max_slots)
        assert (screen.on_the_wire is not None) == (context["in_flight"] == 1)
        assert screen.pool_left == (observation["pool"] != 0).any(axis=1).sum()
        answered = [card for card in screen.cards if card.answer is not None]
        assert len(answered) == round(context["exposures"] * config.max_slots)
        assert screen.clicks == round(context["page_views"] * config.max_slots)
        if not screen.cards:
            continue
        newest = screen.cards[-1]
        assert newest.item == info["placed_item"] and newest.invalid == info["invalid_action"]
        assert (newest.placed == "inserted") == (info["placed_action"] >= config.pool_size)
        assert newest.request == (None, "requested", "automatic")[info["request_sent"]]
        assert screen.arrived == info["page_arrived"]
        for card, row in zip(answered[::-1], observation["exposures"][: len(answered)][::-1], strict=False):
            features = config.n_item_features
            assert card.answer.dwell == pytest.approx(row[features + config.n_types])
            assert card.kind == names[row[features : features + config.n_types].argmax()]
            assert card.base_ctr == pytest.approx(row[config.embedding_size + 1])
        clicks += screen.clicks
    assert clicks > 0


def test_promoted_inserted_and_requested_cards_are_told_apart():
    env = make(JOINT, "ansi")
    config = env.unwrapped.config
    observation, _ = env.reset(seed=0)
    request = config.pool_size + config.n_cards
    for action in (
        4,
        0,
        request,
        0,
        config.pool_size,
        4,
    ):  # row 0 and 4 are used by then: two illegal actions
        observation, *_ = env.step(action)
    cards = env.unwrapped.screen().cards
    assert [card.placed for card in cards[:3]] == ["promoted", "kept", "kept"]
    assert (cards[0].row, cards[0].passed, cards[1].row) == (4, 4, 0)
    assert cards[2].request == "requested" and cards[0].request is None
    assert cards[3].invalid and cards[3].placed == "kept"
    assert cards[4].placed == "inserted" and cards[4].kind == "video" and cards[4].row == 0
    assert cards[4].page == 1 and cards[4].page_from == "requested"
    assert cards[5].placed == "promoted" and cards[5].passed == 4  # of the new page
    text = env.render()
    for part in ("row 5, before 4", "inserted", "asks the cloud", "page 2, requested", "illegal action"):
        assert part in text


def test_plans_are_shown_slot_by_slot_as_they_would_be_alone():
    slate, single = make("EdgeFeedSlate-v0", "ansi"), make(JOINT, "ansi")
    single.reset(seed=5)
    for _, info in play(slate, 4, seed=5):
        if not info["slots"]:
            continue
        config = slate.unwrapped.config
        for k in range(info["slots"]):
            asked = k == 0 and info["request_sent"] == 1
            action = config.pool_size + config.n_cards if asked else info["placed_action"][k]
            single.step(int(action))
        ours, theirs = slate.unwrapped.screen(), single.unwrapped.screen()
        assert ours.intent == theirs.intent and ours.slot == theirs.slot
        assert [(c.item, c.placed, c.answer) for c in ours.cards] == [
            (c.item, c.placed, c.answer) for c in theirs.cards
        ]


def test_the_intent_is_that_of_each_answer():
    env = make(JOINT, "ansi")
    users = env.unwrapped.users
    now = None
    for _ in play(env, 60, seed=2, choose=lambda env, observation, _: keep_action(env, observation)):
        screen = env.unwrapped.screen()
        answered = sum(card.answer is not None for card in screen.cards)
        assert len(screen.intent) == answered + 1
        if now is not None and screen.cards[answered - 1 : answered]:
            assert screen.intent[-2] == now
        now = int((users.world.centres @ users.arrays.intent_now[0]).argmax())
        assert screen.intent[-1] == now
    assert screen.end in ("left", "cut off") and len(set(screen.intent)) > 1
    assert ("the user leaves" if screen.end == "left" else "cut off") in screen_text(screen)


@pytest.mark.parametrize("mode", ["Same", "Next"])
def test_a_batch_renders_every_row(mode):
    vector = gym.make_vec(
        JOINT, 3, scenario="lite", users="synthetic", render_mode="rgb_array", autoreset_mode=f"{mode}Step"
    )
    single = make(JOINT, "rgb_array")
    observation, _ = vector.reset(seed=7)
    single.reset(seed=8)
    done = False
    for step in range(25):
        actions = keep_action(vector, observation)
        if not done:
            _, _, terminated, truncated, _ = single.step(int(actions[1]))
            done = terminated or truncated
        observation, *_ = vector.step(actions)
        if step % 8 == 0 and not done:
            frames = vector.render()
            assert len(frames) == 3 and np.array_equal(frames[1], single.render())
    assert vector.screen(0).slot <= 25


@pytest.mark.parametrize(
    "options",
    [{"lookahead": 0}, {"lookahead": 10}, {"card_types": ("a name too long to fit on a card",) * 4}],
)
def test_other_feeds_are_drawn_too(options):
    env = make("EdgeFeedMix-v0", "rgb_array", **options)
    for _ in play(env, 25):
        if env.unwrapped.screen().slot % 6 == 1:
            assert env.render().shape == (HEIGHT, WIDTH, 3)
    waiting = sum(card.answer is None for card in env.unwrapped.screen().cards)
    assert waiting == options.get("lookahead", 2)


def test_record_video(tmp_path, monkeypatch):
    """Gymnasium hands moviepy the frames: one for the reset, one for each step."""
    clips = []
    clip = SimpleNamespace(write_videofile=lambda path, logger: None)
    maker = SimpleNamespace(ImageSequenceClip=lambda frames, fps: clips.append((frames, fps)) or clip)
    monkeypatch.setitem(sys.modules, "moviepy", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "moviepy.video.io.ImageSequenceClip", maker)
    env = RecordVideo(
        make(JOINT, "rgb_array"), str(tmp_path / "videos"), episode_trigger=lambda episode: True
    )
    steps = len(list(play(env, 8))) - 1
    env.close()
    ((frames, fps),) = clips
    assert len(frames) == steps + 1 and fps == env.metadata["render_fps"]
    assert {frame.shape for frame in frames} == {(HEIGHT, WIDTH, 3)}


def test_a_list_of_frames():
    env = gym.make(JOINT, scenario="lite", users="synthetic", render_mode="rgb_array_list")
    n = len(list(play(env, 4)))
    assert len(env.render()) == n


def test_unknown_modes(env_id):
    with pytest.raises(
        InputError, match="render_mode must be None or one of ansi, human, rgb_array, got 'gif'"
    ):
        make_feeds(track_of(env_id), 1, scenario="lite", users="synthetic", render_mode="gif")


@pytest.mark.parametrize(("mode", "missing"), [("rgb_array", "PIL"), ("human", "PIL"), ("human", "pygame")])
def test_a_missing_library_is_named(mode, missing, monkeypatch):
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(MissingExtraError, match=r"pip install 'edgerec_gym\[render\]'"):
        make(JOINT, mode)
    make(JOINT, "ansi")  # needs neither


def test_colours_are_alike_where_categories_are(lite):
    """Goods of two categories whose embeddings agree look alike, in the mean over all pairs."""
    colours = category_colours(lite.catalog)
    assert len(set(colours)) == len(colours) == lite.catalog.category.max() + 1
    rgb = np.array([[int(c[k : k + 2], 16) for k in (1, 3, 5)] for c in colours], float)
    means = np.stack(
        [lite.catalog.embeddings[lite.catalog.category == k].mean(axis=0) for k in range(len(colours))]
    )
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    pairs = np.triu_indices(len(colours), 1)
    distance = np.linalg.norm(rgb[:, None] - rgb, axis=2)[pairs]
    assert np.corrcoef((means @ means.T)[pairs], distance)[0, 1] < -0.2


def test_recorder_of_a_batch_of_your_own():
    """Session replays follow a batch without any render mode."""
    env = make_feeds(JOINT, 2, scenario="lite", users="synthetic")
    recorder = ScreenRecorder(env.batch, env.scenario.catalog)
    assert recorder.screen(1).cards == ()
    env.reset(seed=0)
    env.step(np.array([0, 3]))
    assert recorder.screen(1).cards[0].passed == 3 and recorder.screen(0).cards[0].passed == 0
    assert recorder.screen(1).cards[0].item != NO_ITEM
