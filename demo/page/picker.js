// Which camera is shown: a list that knows those of the browser, of the server and of a service, and Freeze.

import { $ } from "/page/common.js";
import { OWN, SIMULATION, freeze, isFrozen, start } from "/page/camera.js";
import { on } from "/page/feed.js";

const SETTLE_MS = 350;                                     // going through the list by keyboard opens nothing on the way
let settling = 0;

const MARKUP = `
  <label class="field">Camera
    <select id="camera">
      <option value="${SIMULATION}">Simulated camera</option>
      <option value="${OWN}">This browser's camera</option>
      <option value="0">Camera 0 of the server's machine</option>
      <option value="other" hidden disabled>Another one: address …</option>
    </select>
  </label>
  <form id="address-form" hidden>
    <label class="field">Address <input id="address" placeholder="zmq://host:port or rtsp://…" autocomplete="off"></label>
    <button>Open</button>
  </form>
  <button id="freeze" type="button" aria-pressed="false" disabled>Freeze</button>`;

function offer(value, text, before) {
  const known = [...$("camera").options].some(option => option.value === value);
  if (!known) $("camera").insertBefore(new Option(text, value), before);
}

export function mountPicker(place) {
  place.insertAdjacentHTML("afterbegin", MARKUP);
  const list = $("camera"), other = list.querySelector("option[value=other]");
  list.onchange = () => {
    clearTimeout(settling);
    $("address-form").hidden = list.value !== "other";
    if (list.value !== "other") settling = setTimeout(() => start(list.value), SETTLE_MS);
  };
  $("address-form").onsubmit = event => {
    event.preventDefault();
    const address = $("address").value.trim();
    if (address) start(address);
  };
  $("freeze").onclick = () => freeze(!isFrozen());
  on("frozen", frozen => $("freeze").setAttribute("aria-pressed", String(frozen)));
  on("state", ({ kind }) => { $("freeze").disabled = kind !== "running"; });
  on("source", name => {
    const listed = [...list.options].some(option => option.value === name);
    list.value = listed ? name : name.startsWith("sim:") ? SIMULATION : "other";
    $("address-form").hidden = list.value !== "other";
  });
  on("devices", devices => {
    for (const { deviceId, label } of devices) offer(`device:${deviceId}`, label || "A camera of this browser", list.options[2]);
  });
  on("hello", hello => {
    other.hidden = other.disabled = !hello.any_source;
    for (const name of hello.sources) offer(name, name, other);
  });
}

export async function listService() {                      // its cameras can be looked at, too; returns their names
  const { health } = await (await fetch("/service/state")).json(), names = Object.keys(health?.cameras ?? {});
  for (const name of names) offer(`service:${name}`, `${name}, of the service`, null);
  return names;
}
