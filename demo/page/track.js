// Events on a line of time, now at the right; those that overlap lie below one another, heads apart.

import { $, announce, make } from "/page/common.js";
import { isFrozen } from "/page/camera.js";
import { correct } from "/page/corrections.js";
import { on } from "/page/feed.js";
import { colour, pictogram, shownName, UNKNOWN } from "/page/labels.js";
import { clock, offerMoment, showMoment } from "/page/moments.js";
import { eventKey } from "/page/stage.js";

const SPANS = [[900, 60], [560, 40], [0, 20]];              // from so many pixels of width on, so many seconds
const LANE = 40, LEAST = 24, NAME = 72;                     // pixels: a lane's height, the width of an event, of a name
const LATEST = 5, REMEMBERED = 200;
let heads = [], now = null, bars = [], closed = [];         // bars: { event, lane, button }, by their start

const describe = ({ label, started_at, ended_at, score, open }) =>
  `${shownName(label)}, ${clock(started_at)}, ${open ? "going on" : `${(ended_at - started_at).toFixed(1)} seconds, score ${score.toFixed(2)}`}`;

function add(event) {
  const going = bars.find(bar => bar.event.open && eventKey(bar.event) === eventKey(event));
  if (going) {
    going.event = event;
    return;
  }
  const button = make("button", { type: "button", className: "event" }, make("i"), make("span", { dir: "auto" }));
  const bar = { event, button, lane: 0 }, taken = new Set(bars.filter(({ event: other }) => other.head === event.head
    && (other.open || other.ended_at > event.started_at)).map(({ lane }) => lane));
  while (taken.has(bar.lane)) bar.lane++;
  offerMoment(button, () => bar.event);
  bars.push(bar);
  bars.sort((one, other) => one.event.started_at - other.event.started_at);
  const next = bars[bars.indexOf(bar) + 1];
  $("lanes").insertBefore(button, next?.button ?? null);
}

function draw() {
  const width = $("lanes").clientWidth;
  if (now === null || !width) return;
  const [, span] = SPANS.find(([least]) => width >= least), x = at => width * (1 - (now - at) / span);
  bars = bars.filter(({ event, button }) => {
    const seen = event.open || x(event.ended_at) > 0 || button === document.activeElement;
    if (!seen) button.remove();
    return seen;
  });
  const used = [...new Set([...heads, ...bars.map(({ event }) => event.head)])].filter(head => bars.some(({ event }) => event.head === head));
  const first = new Map();                                  // lane of each head
  let lanes = 0;
  for (const head of used) {
    first.set(head, lanes);
    lanes += 1 + Math.max(...bars.filter(({ event }) => event.head === head).map(({ lane }) => lane));
  }
  for (const { event, lane, button } of bars) {
    const from = Math.max(0, x(event.started_at)), to = event.open ? width : Math.min(width, x(event.ended_at));
    const left = Math.min(from, width - LEAST), row = first.get(event.head) + lane;
    const next = bars.find(other => other.event.head === event.head && other.lane === lane && other.event.started_at > event.started_at);
    const beside = next ? 0 : Math.max(0, NAME - (width - left));  // the newest one's name ends where the line does
    const room = next ? Math.min(x(next.event.started_at), width - NAME) - left - 6 : width - left + beside;
    Object.assign(button.style, { left: `${left}px`, top: `${LANE * row}px`, width: `${Math.max(LEAST, to - left)}px` });
    button.style.setProperty("--label", colour(event.label));
    button.classList.toggle("going", event.open);
    button.classList.toggle("unknown", event.label === UNKNOWN);
    const [bar, name] = button.children;
    bar.style.marginLeft = `${Math.max(0, from - left)}px`;
    bar.style.width = `${Math.max(4, to - from)}px`;
    name.textContent = room < LEAST ? "" : shownName(event.label);
    Object.assign(name.style, { maxWidth: `${Math.max(0, room)}px`, marginLeft: `${-beside}px`, minWidth: beside ? `${room}px` : 0,
      textAlign: beside ? "right" : "start" });
    const text = describe(event);
    if (button.ariaLabel !== text) button.ariaLabel = text;
  }
  $("lanes").style.height = `${LANE * Math.max(1, lanes)}px`;
  $("no-events").hidden = bars.length > 0;
  $("heads").replaceChildren(...used.length > 1 ? used.map(head => make("span", { textContent: head, dir: "auto",
    style: `top: ${LANE * first.get(head)}px` })) : []);
  const step = span / 4;
  if ($("ticks").dataset.span !== String(span)) {
    $("ticks").dataset.span = span;
    $("ticks").replaceChildren(...[4, 3, 2, 1, 0].map(k => make("span", { textContent: k ? `${step * k} s${k === 4 ? " ago" : ""}` : "now" })));
  }
}

function listLatest() {
  const latest = closed.slice(-LATEST).reverse(), list = $("events"), key = latest.map(event => event.ended_at + event.label).join();
  if (list.dataset.key === key) return;
  list.dataset.key = key;
  $("no-latest").hidden = latest.length > 0;
  list.replaceChildren(...latest.map(event => {
    const name = make("b", { textContent: shownName(event.label), dir: "auto" });
    name.style.setProperty("--label", colour(event.label));
    const show = make("button", { type: "button", className: "small", textContent: "Show" });
    show.ariaLabel = `Show ${describe(event)}`;
    show.onclick = () => showMoment(event, show, true);
    const was = make("button", { type: "button", className: "small", textContent: "That was …", onclick: () => correct(event) });
    const facts = make("span", { className: "hint numbers", textContent: `${clock(event.started_at)} · ${(event.ended_at - event.started_at).toFixed(1)} s · score\u00a0${event.score.toFixed(2)}` });
    return make("li", {}, pictogram(event.label), make("div", {}, name, facts), show, was);
  }));
}

const endAll = () => { for (const { event } of bars) event.open = false; };

on("hello", hello => {
  heads = [...Object.keys(hello.heads), "action"];
  endAll();                                                 // another model, or another server
});
on("source", () => {
  for (const { button } of bars) button.remove();
  bars = [];
  closed = [];
  now = null;
  $("no-events").hidden = false;
  listLatest();
});
on("prediction", ({ captured_at }) => { now = captured_at; });
on("gap", ({ action }) => {
  if (action === "engine restarted") endAll();
});
on("event", event => {
  add(event);
  if (event.open) return;
  closed = [...closed, event].slice(-REMEMBERED);
  announce(event.label === UNKNOWN ? "A movement that is not known" : `${event.label}, recognised`);
});
on("shown", () => {
  if (isFrozen()) return;
  draw();
  listLatest();
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  delete $("events").dataset.key;                           // labels have other colours in the dark
  draw();
  listLatest();
});
addEventListener("resize", draw);
