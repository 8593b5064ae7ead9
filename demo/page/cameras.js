// The Cameras page: a service's cameras and its event log. See demo/service_api.py.

import { $, sentence } from "/page/common.js";
import { shownName } from "/page/labels.js";

const ROUND_MS = 1000, LOG_ROUNDS = 3;
const tiles = new Map();                                   // camera: its tile, and what was counted when
let round = 0;

function tileOf(name) {
  if (tiles.has(name)) return tiles.get(name);
  const link = Object.assign(document.createElement("a"), { className: "tile", href: `/live?service=${encodeURIComponent(name)}` });
  const image = Object.assign(document.createElement("img"), { alt: "" });
  const [title, label, facts] = ["b", "span", "small"].map(kind => document.createElement(kind));
  title.textContent = name;
  image.onerror = () => image.removeAttribute("src");       // there is none yet, or no more
  link.append(image, title, label, facts);
  $("tiles").append(link);
  $("of-camera").add(new Option(name));
  const tile = { link, image, label, facts, received: null, at: 0 };
  tiles.set(name, tile);
  return tile;
}

function show(name, camera, background) {
  const tile = tileOf(name), now = performance.now(), dropped = Object.values(camera.dropped).reduce((sum, n) => sum + n, 0);
  const fps = tile.received === null ? null : 1000 * (camera.received - tile.received) / (now - tile.at);
  Object.assign(tile, { received: camera.received, at: now });
  const health = !camera.present ? "not here" : camera.frozen ? "frozen" : camera.staleness_seconds > 2 ? `silent for ${camera.staleness_seconds.toFixed(0)} s` : "";
  tile.link.classList.toggle("ill", health !== "");
  const labels = Object.values(camera.labels).filter(([label]) => label !== background);
  tile.label.textContent = health || labels.map(([label, score]) => `${shownName(label)} ${Math.round(100 * score)} %`).join(", ") || "–";
  tile.facts.textContent = [fps === null ? "" : `${fps.toFixed(0)} frames/s`, `${dropped} dropped`,
    camera.reconnects ? `${camera.reconnects} reconnects` : ""].filter(Boolean).join(" · ");
  if (camera.present) tile.image.src = `/service/cameras/${encodeURIComponent(name)}.jpg?${Date.now()}`;
}

async function look() {
  const { health, error, address } = await (await fetch("/service/state")).json();
  $("message").textContent = sentence(error);
  if (!health) return;
  const present = Object.values(health.cameras).filter(camera => camera.present).length;
  $("facts").textContent = `${health.engine || `${health.model}, whose engine is being built,`} at ${address}: ${present} of ${Object.keys(health.cameras).length} cameras are here, ${health.waiting} frames wait, the engine was restarted ${health.engine_restarts} times`;
  for (const [name, camera] of Object.entries(health.cameras)) show(name, camera, health.background);
  if (!Object.keys(health.cameras).length) $("message").textContent = "No camera has dialled the service yet.";
  if (round++ % LOG_ROUNDS === 0) await listEvents();
}

async function listEvents() {
  const chosen = new URLSearchParams({ camera: $("of-camera").value, label: $("of-label").value });
  const answer = await fetch(`/service/events?${chosen}`);
  if (!answer.ok) return;
  const found = await answer.json();
  $("log").hidden = false;
  for (const form of ["csv", "jsonl"]) $(form).href = `/service/events.${form}?${chosen}`;
  const known = new Set([...$("of-label").options].map(option => option.value));
  for (const label of found.labels) if (!known.has(label)) $("of-label").add(new Option(label));
  $("total").textContent = found.error ? sentence(found.error) : found.total > found.events.length ? `The latest ${found.events.length} of ${found.total}.` : `${found.total} events.`;
  $("rows").replaceChildren(...found.events.map(event => {
    const row = document.createElement("tr"), video = document.createElement("td");
    for (const text of [new Date(1000 * event.started_at).toLocaleString(), event.camera, shownName(event.label),
                        (event.ended_at - event.started_at).toFixed(1), event.score.toFixed(2)])
      row.append(Object.assign(document.createElement("td"), { textContent: text }));
    if (event.clip !== null) {
      const play = Object.assign(document.createElement("button"), { type: "button", textContent: "Play" });
      play.setAttribute("aria-label", `Play ${event.label} of ${event.camera}`);
      play.onclick = () => {
        Object.assign($("clip"), { src: `/service/clips/${encodeURIComponent(event.clip)}`, hidden: false });
        $("clip").play();
        $("clip").scrollIntoView({ block: "nearest" });
      };
      video.append(play);
    }
    row.append(video);
    return row;
  }));
}

async function go() {
  if (!document.hidden) await look().catch(() => { $("message").textContent = "The server does not answer. This page goes on by itself as soon as it does."; });
  setTimeout(go, ROUND_MS);
}

$("of-camera").onchange = $("of-label").onchange = listEvents;
go();
