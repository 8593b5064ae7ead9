// The camera that is recognised: the browser's own, whose pictures are sent, or one that the server opens.

import { isOpen, on, send, tell } from "/page/feed.js";

const OUTSTANDING = 2;      // pictures under way; further ones are not sent, so the newest wins
export const SIMULATION = "sim://gestures", OWN = "browser";
export const now = () => (performance.timeOrigin + performance.now()) / 1000;
const isOwn = name => name === OWN || name.startsWith("device:");

let video, hello = null, away = true, name = null;                     // what was asked for; null: nothing
let stream = null, turn = 0, underWay = 0, lastAt = null, frozen = false, sent = Promise.resolve();
const small = document.createElement("canvas"), pen = small.getContext("2d", { willReadFrequently: true });

export const seenAt = () => lastAt;                        // capture time of the newest picture that was answered
export const running = () => stream !== null || (name !== null && !isOwn(name));
export const chosen = () => name;
export const isFrozen = () => frozen;
export const useVideo = element => { video = element; };

// States: opening, running, or why there is no picture; stage.js has words for each.
let state = { kind: "idle", text: "" };
const become = (kind, text = "") => {
  state = { kind, text };
  tell("state", state);
};

const request = () => name.startsWith("service:") ? { service: name.slice(8) } : { source: name };

export async function start(wanted) {
  stop();
  name = wanted;
  tell("source", name);
  become("opening");
  if (isOwn(name)) {
    send({ source: null });
    await openOwn(name.startsWith("device:") ? name.slice(7) : null, turn);
  } else {
    send(request());
  }
}

function stop() {
  turn++;
  stream?.getTracks().forEach(track => track.stop());
  stream = lastAt = name = null;
  underWay = 0;
  freeze(false);
}

export function freeze(still) {
  frozen = still;
  if (stream && still) video.pause();
  else if (stream) video.play();
  tell("frozen", frozen);
}

const WHY = { NotAllowedError: "denied", NotFoundError: "none", NotReadableError: "in use" };

async function openOwn(device, asked) {
  let found;
  if (!navigator.mediaDevices) {
    become("insecure");
    return;
  }
  try {
    found = await navigator.mediaDevices.getUserMedia({ audio: false, video: {
      width: { ideal: 640 }, height: { ideal: 480 }, frameRate: { ideal: 30 },
      ...(device ? { deviceId: { exact: device } } : {}) } });
  } catch (error) {
    if (asked === turn) become(WHY[error.name] ?? "not started", error.name);
    return;
  }
  if (asked !== turn) {                                     // something else was chosen meanwhile
    found.getTracks().forEach(track => track.stop());
    return;
  }
  stream = found;
  stream.getVideoTracks()[0].onended = () => {
    stream = null;
    become("lost");
  };
  video.srcObject = stream;
  await video.play();
  video.requestVideoFrameCallback(grab);
  become("running");
  const devices = await navigator.mediaDevices.enumerateDevices();  // named once one may be used
  tell("devices", devices.filter(({ kind, deviceId }) => kind === "videoinput" && deviceId));
}

function grab(_, facts) {
  if (!stream) return;
  video.requestVideoFrameCallback(grab);
  tell("grabbed");
  if (!hello || underWay >= OUTSTANDING || !isOpen()) return;
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
  const encoded = new Promise(done => small.toBlob(done, "image/jpeg", 0.85)), asked = turn;
  sent = sent.then(async () => {                           // in order, however long each takes to encode
    const jpeg = new Uint8Array(await (await encoded).arrayBuffer()), message = new Uint8Array(8 + jpeg.length);
    new DataView(message.buffer).setFloat64(0, at, true);
    message.set(jpeg, 8);
    if (asked !== turn) return;
    send(message);
    tell("kept", { at, jpeg });
  }).catch(() => { underWay = Math.max(0, underWay - 1); });  // it could not be encoded: that one is lost
}

on("hello", found => {
  hello = found;
  if (!away) return;                                        // another model; cameras go on
  away = false;
  underWay = 0;
  if (stream) become("running");
  else if (running()) {                                     // the server was started anew: go on
    become("opening");
    send(request());
  } else {
    tell("state", state);
  }
});
on("gone", () => {
  away = true;
  tell("state", { kind: "gone", text: "" });
});
on("answer", ({ at }) => {
  if (at) lastAt = at;
  if (stream) underWay = Math.max(0, underWay - 1);
});
on("picture", message => {                                  // of a camera that the server opened
  if (stream) return;
  tell("kept", { at: new DataView(message).getFloat64(0, true), jpeg: new Uint8Array(message, 8) });
});
on("error", ({ error, of }) => {
  if (!of) return;
  name = null;
  become(of === "end" ? "ended" : "failed", error);
});
