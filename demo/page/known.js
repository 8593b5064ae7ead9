// What the model knows: every label with its pictogram, which lights up when it is recognised.

import { $, make } from "/page/common.js";
import { on } from "/page/feed.js";
import { loadPictograms, pictogram } from "/page/labels.js";
import { openEvents } from "/page/stage.js";

const tiles = new Map();                                   // head and label: its tile
let latest = null;

function tile(head, label) {
  const name = make("span", { textContent: label, dir: "auto" });
  const made = make("li", { className: "known", title: label }, pictogram(label), name);
  tiles.set(`${head} ${label}`, { made, head, label });
  return made;
}

async function draw(hello) {
  const { heads, background } = latest = hello;
  await loadPictograms().catch(() => {});                   // the server is away: initials do
  if (latest !== hello) return;
  tiles.clear();
  const several = Object.keys(heads).length > 1;
  $("known").replaceChildren(...Object.entries(heads).map(([head, labels]) => make("section", {},
    ...several ? [make("h3", { textContent: head, dir: "auto" })] : [],
    make("ul", { role: "list" }, ...labels.filter(label => label !== background).map(label => tile(head, label))))));
  light();
}

function light() {
  const events = openEvents();
  for (const { made, head, label } of tiles.values()) {
    made.classList.toggle("lit", events.some(event => event.head === head ? event.label === label
      : event.head === "action" && (event.label.startsWith(`${label} `) || event.label.endsWith(` ${label}`))));
  }
  const list = $("known"), first = list.querySelector(".lit");
  if (!first || list.matches(":hover, :focus-within")) return;
  const top = first.offsetTop - list.offsetTop;             // of many labels: bring it into view
  if (top < list.scrollTop || top + first.offsetHeight > list.scrollTop + list.clientHeight) list.scrollTop = top;
}

on("hello", draw);
on("event", light);
on("source", light);
