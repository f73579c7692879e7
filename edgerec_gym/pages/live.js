// The live page: takes the events of the phone, and sends what the buttons ask for.
"use strict";
const LAGS = [0, 200, 1000]; // milliseconds, there and back
const FAST = [0.5, 1.5, 4];
const AWAY = 1500; // milliseconds without a connection before it is told
const by = (id) => document.getElementById(id);
const times = [];
let messages = [];
let state = null;
let last = null; // the slot that was played last
let seen = 0; // number of the last message
let how = ""; // how phone and cloud stand
let awaySince = null; // when the connection ended, in ms of this page
let running = null; // which demo this page belongs to

// --- what happens ---------------------------------------------------------------------------------------
function began(told) {
  frames.length = slots.length = answers.length = 0;
  about.hour = told.hour;
  about.session = told.number;
  last = null;
}

function played(told) {
  const { slot, card } = told;
  items[card.item] = [card.category, card.price_level, card.base_ctr, card.freshness];
  frames[slot] = told.before;
  frames[slot + 1] = told.after;
  slots[slot] = { card, arrived: told.arrived, end: told.end };
  if (told.answered) answers[told.answered.slot] = told.answered.answer;
  times.push([told.decision.ms, told.decision.late]);
  if (times.length > BARS) times.shift();
  last = told;
}

function stands(told) {
  const before = state;
  state = told;
  if (told.connected || told.delivered) awaySince = null;
  else awaySince ??= performance.now();
  for (const message of told.wire.messages) {
    if (message.number <= seen) continue;
    seen = message.number;
    messages.push(message);
    if (before) travel(message);
  }
  messages = messages.slice(-LATEST);
  if (before) tellChanges(before);
}

// Between two sessions the phone connects anew, which is no news.
const isAway = () => awaySince !== null && performance.now() - awaySince > AWAY;

const HEARD = {
  all(told) {
    if (running !== null && told.run !== running) return location.reload(); // another demo on this port
    running = told.run;
    times.length = 0;
    messages = [];
    seen = 0;
    state = null;
    if (told.session.number) began(told.session);
    told.slots.forEach(played);
    stands(told.state);
    by("lost").hidden = true;
    for (const button of document.querySelectorAll("#controls button")) button.disabled = false;
    drawScreen();
    drawState();
  },
  session(told) {
    began(told);
  },
  slot(told) {
    played(told);
    stands(told.state);
    drawScreen();
    drawState();
  },
  state(told) {
    stands(told);
    drawState();
  },
};

// --- what is shown --------------------------------------------------------------------------------------
function put(id, content) {
  by(id).querySelector(".content").replaceChildren(...content.filter(Boolean));
}

function drawScreen() {
  if (!last) return put("phone", [element("p", { class: "soft" }, "A session begins.")]);
  by("phone").style.setProperty("--look", `${last.look_seconds}s`);
  put("phone", phone(last.slot));
}

function drawState() {
  if (last) put("now", nowPanel(last, times, state));
  put("wire", wirePanel(messages, state));
  put("cloud", cloudPanel(state));
  const [now, words] = standing(state);
  const lag = state.network.lag_ms;
  by("route").className = now;
  by("phone-says").textContent = last ? `session ${about.session}, slot ${last.slot + 1}` : "a session begins";
  by("cloud-says").textContent = `${state.acknowledged} of ${plural(state.answers, "answer")}`;
  by("way-says").textContent = state.network.cut ? "cut" : isAway() ? "connecting" : lag ? `lag ${milliseconds(lag)}` : "no lag";
  by("route").setAttribute("aria-label", `phone and cloud: ${words}`);
  if (now !== how && (now === "cut" || how === "cut" || how === "behind")) say(words);
  how = now;
  drawButtons();
}

// What a screen reader is told: what buttons have changed, here or on another page, and nothing of every slot.
function tellChanges(before) {
  const { network, model, paused, speed } = state;
  const said = [];
  if (network.lag_ms !== before.network.lag_ms) said.push(network.lag_ms ? `Lag ${milliseconds(network.lag_ms)}.` : "No lag.");
  if (model.digest !== before.model.digest || model.name !== before.model.name) said.push(`${model.name}, ${model.form}, plays.`);
  if (paused !== before.paused) said.push(paused ? "Paused." : "Going on.");
  if (speed !== before.speed) said.push(`Speed ${speed}.`);
  if (said.length) say(said.join(" "));
}

function label(id, words, kind = "") {
  by(id).firstElementChild.textContent = words;
  by(id).className = kind;
}

function drawButtons() {
  const { cut, lag_ms: lag } = state.network;
  label("cut", cut ? "Restore the network" : "Cut the network", cut ? "on bad" : "");
  label("lag", lag ? `Lag: ${milliseconds(lag)}` : "Lag: none", lag ? "on" : "");
  label("model", `Model: ${state.model.next || state.model.form}`, state.model.next ? "on" : "");
  label("pause", state.paused ? "Go on" : "Pause", state.paused ? "on" : "");
  label("speed", `Speed × ${state.speed}`, "");
  document.body.classList.toggle("paused", state.paused);
}

// A message travels along the line between phone and cloud.
const still = matchMedia("(prefers-reduced-motion: reduce)");
function travel({ way, bytes: size }) {
  if (still.matches || document.hidden) return;
  const lane = document.querySelector("#route .lane");
  if (lane.childElementCount > 12) return;
  const dot = element("i", { class: way, style: `--size: ${Math.min(18, 7 + 1.4 * Math.log2(1 + size / 40)).toFixed(1)}px; --travel: ${0.6 + state.network.lag_ms / 2000}s` });
  dot.addEventListener("animationend", () => dot.remove());
  lane.append(dot);
}

// Two messages may follow each other at once: both stay, so that neither goes unheard.
function say(words) {
  by("said").append(element("p", {}, words));
  while (by("said").childElementCount > 4) by("said").firstElementChild.remove();
}

// --- what is asked for ----------------------------------------------------------------------------------
const next = (values, value) => values[(values.indexOf(value) + 1) % values.length];
const ASKED = {
  cut: () => ["network", { action: state.network.cut ? "restore" : "cut" }],
  lag: () => ["network", { action: "lag", ms: next(LAGS, state.network.lag_ms) }],
  model: () => ["model", {}],
  pause: () => ["pause", { paused: !state.paused }],
  speed: () => ["speed", { speed: next(FAST, state.speed) }],
};

async function ask(name) {
  if (!state) return;
  const [path, body] = ASKED[name]();
  try {
    const answer = await fetch(path, {
      method: "POST", body: JSON.stringify(body),
      headers: { "Content-Type": "application/json", "X-Edgerec-Token": session.token },
    });
    const told = await answer.json();
    if (!told.done) say(told.why);
  } catch {
    lost();
  }
}

for (const name of Object.keys(ASKED)) by(name).addEventListener("click", () => ask(name));
const KEYS = { c: "cut", l: "lag", m: "model", " ": "pause", s: "speed" };
addEventListener("keydown", (event) => {
  const name = KEYS[event.key.toLowerCase()];
  if (!name || event.ctrlKey || event.altKey || event.metaKey || event.repeat) return;
  if (event.key === " " && event.target.closest("button, summary")) return; // the button's own key
  event.preventDefault();
  ask(name);
});

// --- events ---------------------------------------------------------------------------------------------
function lost() {
  by("lost").hidden = false;
  by("lost").textContent = "The demo has ended, or cannot be reached. This page goes on when it is back.";
  for (const button of document.querySelectorAll("#controls button")) button.disabled = true;
}

const source = new EventSource("events");
for (const [kind, hear] of Object.entries(HEARD)) source.addEventListener(kind, (event) => hear(JSON.parse(event.data)));
source.addEventListener("error", lost);
addEventListener("pagehide", () => source.close());
