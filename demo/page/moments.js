// The moment of an event: its facts, and its pictures again. Those of the last minute are kept by the page.

import { make } from "/page/common.js";
import { correct } from "/page/corrections.js";
import { on } from "/page/feed.js";
import { pictogram, shownName } from "/page/labels.js";

const EVERY_S = 0.1, KEPT_S = 60, KEPT_BYTES = 24e6;        // of pictures
const AROUND_S = 0.5, PAUSE_S = 0.6;                        // shown with an event; between one showing and the next
const LEAVE_MS = 250;                                       // to get from an event to its card
const still = matchMedia("(prefers-reduced-motion: reduce)");
const pictures = [];                                        // { at, jpeg }, in order of time
let bytes = 0, showing = 0, pinned = null, leaving = 0;

const card = make("div", { id: "moment", className: "card", popover: "auto" });
card.setAttribute("role", "dialog");
card.setAttribute("aria-label", "Event");
document.body.append(card);

export const clock = at => at > 1e8 ? new Date(1000 * at).toLocaleTimeString() : `${at.toFixed(1)} s`;  // a file's begin at 0

function clear() {
  pictures.length = bytes = 0;
}

on("source", clear);
on("kept", ({ at, jpeg }) => {
  const since = pictures.length ? at - pictures.at(-1).at : Infinity;
  if (since < -1) clear();                                  // the clock jumped
  else if (since < EVERY_S) return;
  pictures.push({ at, jpeg });
  bytes += jpeg.length;
  while (at - pictures[0].at > KEPT_S || bytes > KEPT_BYTES) bytes -= pictures.shift().jpeg.length;
});

export const keptBytes = () => bytes;

async function play(canvas, event) {                        // again and again; without motion, the middle picture
  const mine = ++showing, to = event.open ? Infinity : event.ended_at + AROUND_S;
  const part = pictures.filter(({ at }) => at >= event.started_at - AROUND_S && at <= to);
  canvas.hidden = !part.length;
  for (let i = still.matches && !pinned ? part.length >> 1 : 0; part.length; i = (i + 1) % part.length) {
    const picture = await createImageBitmap(new Blob([part[i].jpeg]));
    if (mine !== showing) return;
    canvas.height = Math.round(canvas.width * picture.height / picture.width);
    canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
    picture.close();
    if (still.matches && !pinned) return;
    const wait = i + 1 < part.length ? part[i + 1].at - part[i].at : PAUSE_S;
    await new Promise(done => setTimeout(done, 1000 * wait));
    if (mine !== showing) return;
  }
}

export function showMoment(event, anchor, pin = false) {
  clearTimeout(leaving);
  const canvas = make("canvas", { width: 320, height: 240 });
  canvas.setAttribute("role", "img");
  canvas.setAttribute("aria-label", `The pictures of ${shownName(event.label)}`);
  const facts = [`${clock(event.started_at)} to ${event.open ? "now" : clock(event.ended_at)}`,
    `${(event.ended_at - event.started_at).toFixed(1)} s long`, `score ${event.score.toFixed(2)}`];
  const buttons = make("div", { className: "row" },
    ...event.open ? [] : [make("button", { type: "button", className: "small", textContent: "That was …", onclick: () => { close(); correct(event); } })],
    make("button", { type: "button", className: "small", textContent: "Close", onclick: close }));
  card.replaceChildren(canvas, make("p", { className: "name", dir: "auto" }, pictogram(event.label), shownName(event.label)),
    make("p", { className: "hint numbers", textContent: facts.join(" · ") }), buttons);
  pinned = pin ? anchor : null;
  card.showPopover();
  const place = anchor.getBoundingClientRect(), { width, height } = card.getBoundingClientRect();
  const below = place.bottom + 6 + height < innerHeight || place.top < height + 12;
  card.style.left = `${Math.max(8, Math.min(place.left + place.width / 2 - width / 2, innerWidth - width - 8))}px`;
  card.style.top = `${Math.max(8, below ? Math.min(place.bottom + 6, innerHeight - height - 8) : place.top - height - 6)}px`;
  play(canvas, event);
  if (pin) buttons.lastChild.focus();
}

function close() {
  card.hidePopover();
}

function leaveMoment() {
  clearTimeout(leaving);
  leaving = setTimeout(() => { if (!pinned && !card.matches(":hover")) close(); }, LEAVE_MS);
}

card.addEventListener("mouseleave", leaveMoment);
card.addEventListener("toggle", ({ newState }) => {
  if (newState !== "closed") return;
  showing++;
  if (pinned?.isConnected && card.contains(document.activeElement)) pinned.focus();
  pinned = null;
});

// Pointing at it or reaching it by keyboard shows its moment; pressing it keeps that open.
export function offerMoment(element, event) {               // event: a function, as an open one goes on
  element.onmouseenter = () => { if (!pinned) showMoment(event(), element); };
  element.onmouseleave = leaveMoment;
  element.onfocus = () => { if (!pinned && element.matches(":focus-visible")) showMoment(event(), element); };
  element.onblur = leaveMoment;
  element.onclick = () => showMoment(event(), element, true);
}
