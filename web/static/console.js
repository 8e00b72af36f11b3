// The live console: bytes arrive as text, are made safe the way the server does it (server/src/pages/text.rs), and are
// appended as text only. It follows the end only while the reader is there.

import { events } from "./live.js";

const LINE_MAX = 2000; // characters of a line that are shown
const LINES_KEPT = 20000; // lines kept on the page; the whole log has the rest

// Complete terminal sequences: CSI, strings (OSC, DCS, SOS, PM, APC), two-character functions and designations.
const SEQUENCE =
  // eslint-disable-next-line no-control-regex
  /(?:\x1b\[|\x9b)[\x20-\x3f]{0,255}[\x40-\x7e]|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]{0,255}(?:\x07|\x9c|\x1b\\)|\x1b(?:[\x30-\x4f\x51-\x57\x59\x5a\x5c\x60-\x7e]|[\x20-\x2f]+[\x30-\x7e])/g;
const CONTROL = /[\x00-\x08\x0b-\x1f\x7f]/g;
const INVISIBLE = /[\x80-\x9f\xad\u061c\u180e\u200b-\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb]|\udb40[\udc00-\udc7f]/g;

/** One line without its end as safe text. */
export function clean(line) {
  return line
    .replace(/\r$/, "")
    .replace(SEQUENCE, "")
    .replace(CONTROL, (one) => String.fromCharCode(one === "\x7f" ? 0x2421 : 0x2400 + one.charCodeAt(0)))
    .replace(INVISIBLE, (one) => `⟨U+${one.codePointAt(0).toString(16).toUpperCase().padStart(4, "0")}⟩`);
}

/** Follows a console; false if it is not live. */
export function tail(log, attempt) {
  if (!log || log.dataset.live !== "true") return false;
  const scroller = log.closest(".split") ? log : document.scrollingElement;
  const follow = document.getElementById("follow");
  const announce = document.getElementById("announce");
  for (const tool of document.querySelectorAll("[data-tool]")) tool.hidden = false;
  const atEnd = () => scroller.scrollHeight - scroller.scrollTop - scroller.clientHeight < 40;
  const toEnd = () => (scroller.scrollTop = scroller.scrollHeight);
  (scroller === log ? log : document).addEventListener("scroll", () => (follow.checked = atEnd()), { passive: true });
  follow.onchange = () => follow.checked && toEnd();
  announce.onchange = () => log.setAttribute("aria-live", announce.checked ? "polite" : "off");

  let number = Number(log.dataset.line);
  let rest = "";
  let element = null;
  // A last line without its end comes again from its start.
  if (log.lastElementChild?.id === `L${number}`) log.lastElementChild.remove();
  if (location.hash) follow.checked = false;
  else toEnd();

  const show = (text) => {
    if (!element) {
      element = document.createElement("div");
      element.id = `L${number}`;
      const anchor = element.appendChild(document.createElement("a"));
      anchor.href = `#L${number}`;
      anchor.textContent = number;
      element.append(document.createElement("i"), "");
    }
    const safe = clean(text);
    const stamp = safe.match(/^\[ *[\d.]*\d\.[\d.]*\] ?/)?.[0] ?? "";
    element.children[1].textContent = stamp;
    element.childNodes[2].data = safe.slice(stamp.length, LINE_MAX) + (safe.length > LINE_MAX ? " … line cut" : "");
    return element;
  };

  const take = ({ text }) => {
    const follows = follow.checked;
    const added = document.createDocumentFragment();
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      added.append(show(line));
      element = null;
      number += 1;
    }
    if (rest) added.append(show(rest));
    // Enough of an endless line: its beginning is shown, the rest is in the raw log.
    if (rest.length > LINE_MAX * 4) rest = rest.slice(0, LINE_MAX * 4);
    log.append(added, "");
    while (log.childElementCount > LINES_KEPT) log.firstElementChild.remove();
    if (follows) toEnd();
  };
  events(`/api/v1/attempts/${attempt}/console/${log.dataset.source}/events`, log.dataset.offset, take);
  return true;
}
