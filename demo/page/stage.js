// The picture, and what lies over it: where it comes from, what is recognised, or why there is none and what to do.

import { $, announce, make, sentence } from "/page/common.js";
import { OWN, SIMULATION, chosen, isFrozen, start, useVideo } from "/page/camera.js";
import { on, tell } from "/page/feed.js";
import { shownName } from "/page/labels.js";

const MARKUP = `
  <video id="video" playsinline muted hidden></video>
  <canvas id="picture" width="640" height="480" role="img" aria-label="The camera's picture" hidden></canvas>
  <canvas id="open" aria-hidden="true" hidden></canvas>
  <canvas id="hands" aria-hidden="true" hidden></canvas>
  <div id="simulated" hidden><span>This is a simulation</span>
    <button id="use-own" type="button" class="primary small">Use my camera</button></div>
  <p id="first-hint" hidden>Point a finger and draw a circle</p>
  <figcaption id="banner"></figcaption>
  <div id="state" class="empty"><h2></h2><p></p><div class="row"></div></div>`;

const AGAIN = "Try again", OWN_CAMERA = "Use my camera", SIMULATED = "Show the simulation";
const STATES = {                                            // title, what to do, what is offered, the first first
  idle: ["Your camera's picture will be here", "It stays on this page and its server.", [OWN_CAMERA, SIMULATED]],
  connecting: ["Connecting …", "The picture will be here in a moment.", []],
  opening: ["Opening the camera …", "Its picture will be here in a moment. If the browser asks, allow it.", []],
  gone: ["The server does not answer", "This page goes on by itself as soon as it does.", []],
  denied: ["This page may not use the camera", "Allow it in the browser's address bar, then try again.", [AGAIN, SIMULATED]],
  none: ["There is no camera in this browser", "Plug one in, then try again.", [AGAIN, SIMULATED]],
  "in use": ["The camera is in use by another program", "Close that one, then try again.", [AGAIN, SIMULATED]],
  "not started": ["The camera does not start", "Choose another one above, or try again.", [AGAIN, SIMULATED]],
  lost: ["The camera is gone", "Plug it in again, then try again.", [AGAIN, SIMULATED]],
  insecure: ["Browsers give a page their camera only over https or from localhost", "Open it as http://localhost, or behind a proxy with a certificate.", [SIMULATED]],
  ended: ["", "It can be shown once more from its beginning.", [AGAIN, SIMULATED]],
  failed: ["There is no picture of this camera", "", [AGAIN, OWN_CAMERA, SIMULATED]],
};

let asked = null, notice = "", prediction = null;
const open = new Map();

export const openEvents = () => [...open.values()];
export const eventKey = event => `${event.head} ${event.number ?? ""}`;
export const showOverPicture = text => { notice = text; drawBanner(); };  // instead of what is recognised

export function mountStage(place) {
  place.innerHTML = MARKUP;
  useVideo($("video"));
  $("use-own").onclick = () => start(OWN);
}

export function showState(kind, text = "") {
  const [title, advice, actions] = STATES[kind] ?? [], simulated = asked?.startsWith("sim:") ?? false;
  const shown = title !== undefined;
  $("state").hidden = !shown;
  if (shown) {
    const [head, words, row] = $("state").children;
    head.textContent = title || text.replace(/\.$/, "");
    words.textContent = kind === "failed" ? sentence(text) : kind === "opening" && simulated ? "Its picture will be here in a moment." : advice;
    row.replaceChildren(...actions.map((name, i) => make("button", { type: "button", textContent: name,
      className: i ? "" : "primary", onclick: () => start({ [AGAIN]: asked, [OWN_CAMERA]: OWN, [SIMULATED]: SIMULATION }[name]) })));
    if (kind !== "opening" && kind !== "connecting") announce(`${head.textContent}. ${words.textContent}`);
  }
  $("simulated").hidden = shown || !simulated;
}

function drawBanner() {
  $("banner").textContent = notice || (!prediction ? "" : !prediction.warm ? "Warming up …" : openEvents().map(event => shownName(event.label)).join(", "));
}

on("state", ({ kind, text }) => {
  const own = chosen() === OWN || (chosen()?.startsWith("device:") ?? false);
  if (kind === "running") {
    $("video").hidden = !own;
    $("picture").hidden = own;
  }
  showState(kind, text);
});
on("source", name => {
  asked = name;
  prediction = null;
  open.clear();
  $("open").hidden = $("hands").hidden = $("picture").hidden = $("video").hidden = true;
  drawBanner();
});
on("hello", () => { open.clear(); prediction = null; });
on("gap", ({ action }) => { if (action === "engine restarted") open.clear(); });
on("event", event => { if (event.open) open.set(eventKey(event), event); else open.delete(eventKey(event)); });
on("prediction", record => { prediction = record; });
on("shown", () => { if (!isFrozen()) drawBanner(); });

on("picture", async message => {
  if (isFrozen() || !$("video").hidden) return;
  const of = asked, picture = await createImageBitmap(new Blob([new Uint8Array(message, 8)]));
  if (of !== asked) return;
  const canvas = $("picture");
  if (canvas.width !== picture.width || canvas.height !== picture.height) {
    canvas.width = picture.width;
    canvas.height = picture.height;
  }
  canvas.getContext("2d").drawImage(picture, 0, 0);
  picture.close();
  if (!$("state").hidden && chosen() !== null) tell("state", { kind: "running", text: "" });  // the first one
});
