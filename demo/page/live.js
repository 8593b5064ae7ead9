// A camera, live: shows it, sends small pictures with their times, draws what comes back. See demo/server.py.

import { $ } from "/page/common.js";

const OUTSTANDING = 2;      // pictures under way; further ones are not sent, so the newest wins
const STRIP_S = 20;
const SLOW = 0.3;           // of the camera's pictures are answered
const AROUND_S = 0.5;       // an event, that is kept with it
const RETRY_MS = [500, 1000, 2000, 4000];
const BONES = [[0, 1, 2, 3, 4], [0, 5, 6, 7, 8], [9, 10, 11, 12], [13, 14, 15, 16], [0, 17, 18, 19, 20], [5, 9, 13, 17]];
const HANDS = { left: "#3ca0ff", right: "#ff8c28" };        // as in the annotated video
const now = () => (performance.timeOrigin + performance.now()) / 1000;

let socket, hello, source = null, stream = null, frozen = false, tries = 0;
let underWay = 0, lastAt = null, sent = Promise.resolve();
let gateRange = null;
let prediction = null, open = new Map(), closed = [], gap = null, notice = "";
let slow = false;
const grabbed = [], answered = [], delays = [];

const small = document.createElement("canvas"), pen = small.getContext("2d", { willReadFrequently: true });

export function colour(label) {                            // a label's own; AA on light and dark, whatever the hue
  let number = 0;
  for (const letter of label) number = (number * 31 + letter.codePointAt(0)) % 359;
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  return `hsl(${number} ${dark ? "75% 70%" : "70% 27%"})`;
}

export const notify = (text, fine = false) => {
  $("message").textContent = text;
  $("message").className = fine ? "fine" : "";
};

// ---- the server ----

function connect() {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/live/feed`);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => { if (tries) notify(""); tries = 0; underWay = 0; };
  socket.onmessage = message => typeof message.data === "string" ? receive(JSON.parse(message.data)) : show(message.data);
  socket.onclose = () => {
    notify("The server does not answer. This page goes on by itself as soon as it does.");
    setTimeout(connect, RETRY_MS[Math.min(tries++, RETRY_MS.length - 1)]);
  };
}

export const seenAt = () => lastAt;                        // capture time of the newest picture that was answered
export const showOverPicture = text => { notice = text; banner(); };  // over the picture, instead of what is recognised

export const running = () => stream !== null || source !== null;

function send(message) {                             // returns whether the server is there
  const there = socket.readyState === WebSocket.OPEN;
  if (there) socket.send(JSON.stringify(message));
  return there;
}

export function save(label, from, to, place = "") {
  if (!send({ save: { label, from, to, place } })) notify(`The server does not answer: ${label} was not kept. Record it again.`);
}

function receive(message) {
  if (message.hello) {
    hello = message.hello;
    $("threshold").value = hello.threshold;
    showThreshold();
    $("labels").replaceChildren(...["nothing", ...hello.labels.filter(label => label !== hello.background)].map(label => new Option(label)));
    const other = $("camera").querySelector("option[value=other]");
    other.hidden = other.disabled = !hello.any_source;
    const known = new Set([...$("camera").options].map(option => option.value));
    for (const name of hello.sources) if (!known.has(name)) other.before(new Option(name, name));
    open.clear();
    prediction = null;
    $("hands").hidden = true;
    if ($("gates").getAttribute("aria-pressed") === "true") send({ gates: true });
    send({ hidden: document.hidden });
    if (source !== null) send(source);                      // the server was started anew: go on
  }
  if (message.error) notify(message.error);
  if (message.saved) dispatchEvent(new CustomEvent("saved", { detail: message.saved }));
  if (message.at) lastAt = message.at;
  if (message.records) {
    if (source === null && message.at) { answered.push(now()); delays.push([now(), 1000 * (now() - message.at)]); }
    if (source === null) underWay = Math.max(0, underWay - 1);
    for (const record of message.records) take(record);
    if (message.records.length && !frozen) draw();
  }
}

function take(record) {
  if (record.type === "prediction") {
    prediction = record;
  } else if (record.type === "gates") {
    drawGates(record);
  } else if (record.type === "gap") {
    gap = record;
    if (record.action === "engine restarted") open.clear();
  } else if (record.open) {
    open.set(`${record.head} ${record.number}`, record);
  } else {
    open.delete(`${record.head} ${record.number}`);
    closed.push(record);
    closed = closed.slice(-200);
  }
}

// ---- cameras ----

async function start() {
  notify("");
  stop();
  const chosen = $("camera").value;
  source = chosen === "other" ? { source: $("address").value.trim() } : chosen.startsWith("service:") ? { service: chosen.slice(8) }
    : chosen === "browser" || chosen.startsWith("device:") ? null : { source: chosen };
  if (source !== null) {
    $("video").hidden = true;
    $("picture").hidden = false;
    send(source);
  } else {
    send({ source: null });
    await openOwn(chosen.startsWith("device:") ? chosen.slice(7) : null);
  }
  $("freeze").disabled = $("gates").disabled = $("record").disabled = source !== null && "service" in source;
}

function stop() {
  stream?.getTracks().forEach(track => track.stop());
  stream = null;
  prediction = gap = lastAt = null;
  $("hands").hidden = true;
  open.clear();
  closed = [];
  underWay = 0;
}

const WHY = {
  NotAllowedError: "This page may not use the camera. Allow it in the browser's address bar, then press Start.",
  NotFoundError: "There is no camera in this browser. Plug one in, or choose the simulated camera.",
  NotReadableError: "The camera is in use by another program. Close that one, then press Start.",
};

async function openOwn(device) {
  if (!navigator.mediaDevices) {
    notify("Browsers give a page their camera only over https or from localhost. Open it as http://localhost.");
    return;
  }
  try {
    stream = await navigator.mediaDevices.getUserMedia({ audio: false, video: {
      width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 30 },
      ...(device ? { deviceId: { exact: device } } : {}) } });
  } catch (error) {
    notify(WHY[error.name] ?? `The camera does not start (${error.name}). Choose another one.`);
    return;
  }
  stream.getVideoTracks()[0].onended = () => {
    stream = null;
    notify("The camera is gone. Plug it in again, then press Start.");
  };
  const video = $("video");
  video.srcObject = stream;
  video.hidden = false;
  $("picture").hidden = true;
  await video.play();
  listCameras();
  video.requestVideoFrameCallback(grab);
}

async function listCameras() {                             // their names are known once one may be used
  const known = new Set([...$("camera").options].map(option => option.value));
  for (const device of await navigator.mediaDevices.enumerateDevices())
    if (device.kind === "videoinput" && device.deviceId && !known.has(`device:${device.deviceId}`))
      $("camera").add(new Option(device.label || "A camera of this browser", `device:${device.deviceId}`), 1);
}

function grab(_, facts) {
  if (!stream || source !== null) return;
  const video = $("video");
  video.requestVideoFrameCallback(grab);
  grabbed.push(now());
  if (!hello || underWay >= OUTSTANDING || socket.readyState !== WebSocket.OPEN) return;
  const at = (performance.timeOrigin + (facts.captureTime ?? facts.expectedDisplayTime ?? performance.now())) / 1000;
  const scale = Math.min(1, Math.max(hello.width / video.videoWidth, hello.height / video.videoHeight));
  const width = Math.round(video.videoWidth * scale), height = Math.round(video.videoHeight * scale);
  if (small.width !== width || small.height !== height) {
    small.width = width;
    small.height = height;
    pen.imageSmoothingQuality = "high";                     // setting a size forgets it
  }
  pen.drawImage(video, 0, 0, width, height);
  underWay++;
  const encoded = new Promise(done => small.toBlob(done, "image/jpeg", 0.85));
  sent = sent.then(async () => {                           // in order, however long each takes to encode
    const jpeg = new Uint8Array(await (await encoded).arrayBuffer()), message = new Uint8Array(8 + jpeg.length);
    new DataView(message.buffer).setFloat64(0, at, true);
    message.set(jpeg, 8);
    if (socket.readyState === WebSocket.OPEN) socket.send(message);
  }).catch(() => { underWay = Math.max(0, underWay - 1); });  // it could not be encoded: that one is lost
}

async function show(message) {                             // a picture of a camera that the server opened
  if (frozen || source === null) return;
  const picture = await createImageBitmap(new Blob([new Uint8Array(message, 8)]));
  const canvas = $("picture");
  if (canvas.width !== picture.width || canvas.height !== picture.height) {
    canvas.width = picture.width;
    canvas.height = picture.height;
  }
  canvas.getContext("2d").drawImage(picture, 0, 0);
  answered.push(now());
  const delay = now() - new DataView(message).getFloat64(0, true);
  if (delay < 1e6) delays.push([now(), 1000 * delay]);     // a file's times begin at 0
}

// ---- what is shown ----

function draw() {
  if (!prediction) return;
  const several = Object.keys(prediction.heads).length > 1, rows = [];
  for (const [head, scores] of Object.entries(prediction.heads)) {
    const moment = new Map(scores.now);
    for (const [label, score] of scores.window) rows.push([several ? `${head}: ${label}` : label, label, score, moment.get(label) ?? 0]);
  }
  const bars = $("bars");
  while (bars.children.length > rows.length) bars.lastChild.remove();
  while (bars.children.length < rows.length) {
    const bar = document.createElement("div");
    bar.className = "bar";
    bar.innerHTML = '<span></span><div class="track"><i></i><i></i></div><span></span>';
    bars.append(bar);
  }
  rows.forEach(([name, label, window, moment], i) => {
    const [text, track, number] = bars.children[i].children;
    text.textContent = name;
    text.className = label === hello.background ? "quiet" : "";
    track.style.setProperty("--label", label === hello.background ? "var(--soft)" : colour(label));
    track.children[0].style.width = `${100 * window}%`;
    track.children[1].style.width = `${100 * moment}%`;
    number.textContent = `${Math.round(100 * window)} %`;
  });
  banner();
  drawHands();
  drawStrip();
  listEvents();
}

function banner() {
  $("banner").textContent = notice || (!prediction ? "" : !prediction.warm ? "Warming up …" : [...open.values()].map(event => event.label).join(", "));
}

function drawStrip() {                                     // time runs to the left; below: the gates of the window's clips
  const canvas = $("strip"), pen = canvas.getContext("2d"), ratio = devicePixelRatio;
  const width = canvas.clientWidth, height = canvas.clientHeight;
  canvas.width = width * ratio;
  canvas.height = height * ratio;
  pen.scale(ratio, ratio);
  pen.font = "14px system-ui, sans-serif";
  const end = prediction.captured_at, x = at => width * (1 - (end - at) / STRIP_S);
  let free = 0;                                            // names do not cover one another
  const shown = [...closed, ...open.values()].map(event => ({ event, from: x(event.started_at), to: event.open ? width : x(event.ended_at) })).filter(one => one.to >= 0);
  shown.sort((one, other) => one.from - other.from);
  const ends = [];                                         // of lanes: events that overlap lie below one another
  for (const one of shown) {
    one.lane = ends.findIndex(end => end <= one.from);
    if (one.lane < 0) one.lane = ends.length;
    ends[one.lane] = one.to;
  }
  const tall = 22 / Math.max(1, ends.length);
  for (const { event, from, to, lane } of shown) {
    pen.fillStyle = colour(event.label);
    pen.globalAlpha = event.label === "unknown" ? 0.35 : event.open ? 0.75 : 1;
    pen.fillRect(from, 6 + lane * tall, Math.max(3, to - from), Math.max(2, tall - (ends.length > 1)));
    pen.globalAlpha = 1;
    const text = event.open ? event.label : `${event.label} ${event.score.toFixed(2)}`, at = Math.max(2, free, from);
    pen.fillText(text, at, 46);
    free = at + pen.measureText(text).width + 8;
  }
  pen.fillStyle = getComputedStyle(document.body).getPropertyValue("--accent");
  prediction.clips.forEach((gate, i) => {
    const from = x(end - (prediction.clips.length - i) * hello.clip_s), to = x(end - (prediction.clips.length - i - 1) * hello.clip_s);
    pen.globalAlpha = 0.2;
    pen.fillRect(from, 60, to - from - 2, 30);
    pen.globalAlpha = 1;
    pen.fillRect(from, 60 + 30 * (1 - gate), to - from - 2, 30 * gate);
  });
}

function drawHands() {
  const canvas = $("hands"), pen = canvas.getContext("2d");
  canvas.hidden = !prediction.hands;
  if (canvas.hidden) return;
  const width = canvas.width = canvas.clientWidth * devicePixelRatio, height = canvas.height = canvas.clientHeight * devicePixelRatio;
  pen.lineWidth = Math.max(2, width / 240);
  for (const [side, points] of Object.entries(prediction.hands)) {
    pen.strokeStyle = HANDS[side];
    pen.fillStyle = "#fff";
    for (const bone of BONES) {
      pen.beginPath();
      for (const i of bone) pen.lineTo(points[i][0] * width, points[i][1] * height);
      pen.stroke();
    }
    for (const [x, y] of points) {
      pen.beginPath();
      pen.arc(x * width, y * height, 1.5 * pen.lineWidth, 0, 2 * Math.PI);
      pen.fill();
      pen.stroke();
    }
  }
}

function drawGates(record) {                               // over the part of the picture that the network sees
  if (frozen) return;
  const canvas = $("open"), [height, width] = record.size_hw;
  canvas.style.height = `${100 * record.part_hw[0]}%`;
  canvas.style.width = `${100 * record.part_hw[1]}%`;
  canvas.hidden = $("gates").getAttribute("aria-pressed") !== "true";
  canvas.width = width;
  canvas.height = height;
  const values = atob(record.open), pen = canvas.getContext("2d"), pixels = pen.createImageData(width, height);
  const numbers = Array.from(values, value => value.charCodeAt(0)), least = Math.min(...numbers), most = Math.max(...numbers);
  numbers.forEach((open, i) => {                           // differences are what is of interest
    const share = (open - least) / Math.max(1, most - least);
    pixels.data.set([255, 220 - 220 * share, 0, 170 * share], 4 * i);
  });
  gateRange = [least / 255, most / 255];
  pen.putImageData(pixels, 0, 0);
}

function listEvents() {
  const latest = closed.slice(-5).reverse(), list = $("events"), key = latest.map(event => event.ended_at + event.label).join();
  if (list.dataset.key === key) return;
  list.dataset.key = key;
  list.replaceChildren(...latest.map(event => {
    const item = document.createElement("li"), name = document.createElement("b");
    name.textContent = event.label;
    name.style.setProperty("--label", colour(event.label));
    const when = new Date(1000 * event.started_at).toLocaleTimeString();
    const was = document.createElement("button");
    was.type = "button";
    was.textContent = "That was …";
    was.onclick = () => correct(event);
    item.append(name, ` ${when}, ${(event.ended_at - event.started_at).toFixed(1)} s, score ${event.score.toFixed(2)} `, was);
    return item;
  }));
}

function correct(event) {                                  // a wrong recognition becomes a recording of what it was
  const dialog = $("was");
  $("was-label").value = "";
  dialog.onclose = () => {
    const label = $("was-label").value.trim();
    if (dialog.returnValue === "keep" && label) save(label, event.started_at - AROUND_S, event.ended_at + AROUND_S);
  };
  dialog.returnValue = "";
  dialog.showModal();
}

document.addEventListener("visibilitychange", () => send({ hidden: document.hidden }));  // no pictures for nobody

matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  delete $("events").dataset.key;                           // labels have other colours in the dark
  draw();
});

const rate = times => {
  while (times.length && times[0] < now() - 2) times.shift();
  return times.length / 2;
};

function watchPace() {                                     // newest pictures win; it is told when most of them lose
  const wanted = rate(grabbed), few = socket.readyState === WebSocket.OPEN && wanted >= 10 && rate(answered) < SLOW * wanted;
  if (few) notify(`Only ${rate(answered).toFixed(0)} of ${wanted.toFixed(0)} pictures a second come through: the network or the server is slow.`);
  else if (slow) notify("");
  slow = few;
}

setInterval(() => {
  watchPace();
  while (delays.length && delays[0][0] < now() - 5) delays.shift();
  const sorted = delays.map(([, ms]) => ms).sort((a, b) => a - b), p95 = sorted[Math.floor(0.95 * sorted.length)];
  const parts = prediction ? Object.entries(prediction.latency_ms).map(([part, ms]) => `${part} ${ms.toFixed(1)}`).join(", ") : "";
  $("facts").textContent = [`${rate(answered).toFixed(0)} frames/s`,
    p95 === undefined ? "" : `camera to result ${sorted[Math.floor(sorted.length / 2)].toFixed(0)} ms, p95 ${p95.toFixed(0)} ms`,
    parts && `in the server, ms: ${parts}`, prediction ? `${prediction.dropped} dropped, ${prediction.held} held` : "",
    gateRange && !$("open").hidden ? `gates ${gateRange.map(open => open.toFixed(2)).join(" (clear) to ")} (red) open` : "",
    prediction?.hands && !Object.keys(prediction.hands).length ? "no hand in view" : "",
    gap ? `last gap: ${gap.seconds.toFixed(1)} s (${gap.action})` : ""].filter(Boolean).join(" · ");
  document.body.dataset.facts = JSON.stringify({ rate: rate(answered), p95, shown: $("banner").textContent });
}, 500);

function showThreshold() { $("above").textContent = Number($("threshold").value).toFixed(3); }

$("camera").onchange = () => { $("address-label").hidden = $("camera").value !== "other"; };
$("start").onclick = start;
$("threshold").oninput = showThreshold;
$("threshold").onchange = () => send({ threshold: Number($("threshold").value) });
$("freeze").onclick = () => {
  frozen = !frozen;
  $("freeze").setAttribute("aria-pressed", String(frozen));
  if (frozen) $("video").pause(); else $("video").play();
};
addEventListener("saved", ({ detail }) => notify(`Kept: recording ${detail.number} of ${detail.label}.`, true));
$("gates").onclick = () => {
  const shown = $("gates").getAttribute("aria-pressed") !== "true";
  $("gates").setAttribute("aria-pressed", String(shown));
  $("open").hidden = true;
  send({ gates: shown });
};
connect();

async function listService() {                             // its cameras can be looked at, too
  const { health } = await (await fetch("/service/state")).json();
  for (const name of Object.keys(health?.cameras ?? {})) $("camera").add(new Option(`${name}, of the service`, `service:${name}`));
  const wanted = new URLSearchParams(location.search).get("service");
  if (wanted !== null && health?.cameras[wanted]) {
    $("camera").value = `service:${wanted}`;
    if (socket.readyState === WebSocket.OPEN) start(); else socket.addEventListener("open", start, { once: true });
  }
}
listService().catch(() => {});
