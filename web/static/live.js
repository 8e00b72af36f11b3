// Staying up to date: server-sent events, parts of the page fetched again, and times that count on.

// How far the browser's clock is ahead of the server's.
const skew = Date.now() - (Number(document.body.dataset.now) || Date.now());
const link = document.getElementById("link");

/** Follows an event stream from `after` on; a lost stream is opened again where it ended. */
export function events(path, after, take) {
  let last = after;
  let source;
  const open = () => {
    source = new EventSource(`${path}?after=${last}`);
    source.onopen = () => say(path, "live");
    source.onmessage = (message) => {
      if (message.lastEventId) last = message.lastEventId;
      take(JSON.parse(message.data));
    };
    source.addEventListener("complete", () => {
      source.close();
      say(path, "");
    });
    source.onerror = () => {
      say(path, "reconnecting");
      // The browser tries again by itself unless the answer was an error.
      if (source.readyState === EventSource.CLOSED) setTimeout(open, 5000);
    };
  };
  open();
  addEventListener("pagehide", () => source.close());
  addEventListener("pageshow", (event) => event.persisted && open());
}

const said = new Map();

/** Says how the streams are: the worst of them. */
function say(who, what) {
  said.set(who, what);
  const all = [...said.values()];
  const text = ["reconnecting", "live"].find((one) => all.includes(one)) ?? "";
  if (link.textContent !== text) link.textContent = text;
  link.dataset.on = text === "live";
}

const wanted = new Set();
let running = null;

/** Fetches this page again and replaces the elements of these ids; asking often costs one fetch a second. */
export function refresh(ids) {
  for (const id of ids) wanted.add(id);
  running ??= (async () => {
    await pause(100);
    while (wanted.size) {
      const now = [...wanted];
      wanted.clear();
      try {
        const answer = await fetch(location.href, { headers: { accept: "text/html" } });
        if (answer.ok) replace(now, new DOMParser().parseFromString(await answer.text(), "text/html"));
        say("page", "");
      } catch {
        say("page", "reconnecting");
      }
      await pause(1000);
    }
  })().finally(() => (running = null));
  return running;
}

const pause = (span) => new Promise((done) => setTimeout(done, span));

function replace(ids, fresh) {
  for (const id of ids) {
    const [old, next] = [document.getElementById(id), fresh.getElementById(id)];
    if (!old || !next || old.outerHTML === next.outerHTML) continue;
    const open = [...old.querySelectorAll("details[open]")].map((one) => one.closest("[id]")?.id);
    const focus = old.contains(document.activeElement) ? document.activeElement.getAttribute("href") : null;
    old.replaceWith(next);
    for (const row of open) if (row) document.getElementById(row)?.querySelector("details")?.setAttribute("open", "");
    if (focus) next.querySelector(`a[href="${CSS.escape(focus)}"]`)?.focus({ preventScroll: true });
  }
  document.title = fresh.title;
  tick();
}

/** Marks the console lines that have become proofs since they were shown. */
export function mark() {
  for (const proof of document.querySelectorAll('#stages a[data-proof][href^="#L"]')) {
    const line = document.getElementById(proof.hash.slice(1));
    const { stage, state } = proof.closest("[data-stage]").dataset;
    if (!line || [...line.querySelectorAll("b")].some((tag) => tag.textContent === stage)) continue;
    line.classList.add("proof");
    const tag = line.appendChild(document.createElement("b"));
    tag.textContent = stage;
    tag.dataset.state = state;
  }
}

/** Sets every time that counts on. */
export function tick() {
  for (const element of document.querySelectorAll("[data-since]")) {
    const text = label(Math.max(0, Date.now() - skew - Number(element.dataset.since)), "tight" in element.dataset);
    if (element.textContent !== text) element.textContent = text;
  }
}

/** A span as the server words it (server/src/pages/format.rs). */
export function label(millis, tight) {
  const tenths = Math.floor((millis + 50) / 100);
  const s = Math.floor(tenths / 10);
  const [m, h, two] = [Math.floor(s / 60), Math.floor(s / 3600), (n) => String(n).padStart(2, "0")];
  if (s < 10 || (!tight && s < 60)) return `${s}.${tenths % 10}${tight ? "s" : " s"}`;
  if (s < 60) return `${s}s`;
  if (s < 3600) return tight ? `${m}m${two(s % 60)}` : `${m} m ${two(s % 60)} s`;
  if (tight) return `${h}h${two(m % 60)}`;
  return s < 86400 ? `${h} h ${two(m % 60)} m` : `${Math.floor(s / 86400)} d ${h % 24} h`;
}
