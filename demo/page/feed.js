// The connection to the server, see demo/server.py. What comes is told by kind, to whoever listens.

const RETRY_MS = [500, 1000, 2000, 4000];
const listeners = new EventTarget();
let socket = null, tries = 0, changes = 0;                  // of source, that the server has not confirmed yet

export const on = (kind, take) => listeners.addEventListener(kind, ({ detail }) => take(detail));
export const tell = (kind, detail) => listeners.dispatchEvent(new CustomEvent(kind, { detail }));
export const isOpen = () => socket?.readyState === WebSocket.OPEN;

export function connect() {
  socket = new WebSocket(`${location.protocol === "https:" ? "wss" : "ws"}://${location.host}/live/feed`);
  socket.binaryType = "arraybuffer";
  socket.onopen = () => { tries = changes = 0; };
  socket.onmessage = ({ data }) => typeof data === "string" ? receive(JSON.parse(data)) : changes || tell("picture", data);
  socket.onclose = () => {
    tell("gone");
    setTimeout(connect, RETRY_MS[Math.min(tries++, RETRY_MS.length - 1)]);
  };
}

export function send(message) {                             // JSON, or bytes; returns whether the server is there
  if (!isOpen()) return false;
  if (message instanceof Uint8Array) {
    socket.send(message);
  } else {
    if ("source" in message || "service" in message) changes++;
    socket.send(JSON.stringify(message));
  }
  return true;
}

export function save(label, from, to, place = "") {         // as a recording; "saved" tells when it is
  if (!send({ save: { label, from, to, place } })) tell("error", { error: `The server does not answer: ${label} was not kept. Record it again.` });
}

function receive(message) {
  for (const kind of ["hello", "saved"]) if (message[kind]) tell(kind, message[kind]);
  if (message.error) tell("error", message);
  if (message.stopped) changes = Math.max(0, changes - 1);  // what came until now is of the source before
  else if (message.records && !changes) {
    tell("answer", message);
    for (const record of message.records) tell(record.type, record);
    if (message.records.length) tell("shown", message);
  }
}
