// What each page does when scripts are on. Every page is complete without: a reload shows the same.

import { events, label, mark, refresh, tick } from "./live.js";
import { tail } from "./console.js";

const page = document.body.dataset;

/** A run: stage events fill cells at once; for everything else the rows in question are fetched again. */
function run() {
  const every = ["head"];
  events(`/api/v1/runs/${page.run}/events`, Number(page.after), (event) => {
    const row = event.job && document.getElementById(`job-${event.job}`);
    if (event.kind === "stage" && row?.dataset.attempt === event.attempt) {
      fillCell(row.querySelector(`[data-stage="${event.stage.name}"]`), event.stage);
    } else if (event.kind === "run_done") {
      refresh([...every, ...[...document.querySelectorAll("#grid tbody tr")].map((one) => one.id)]);
    } else if (!["report", "dump_progress"].includes(event.kind)) {
      refresh(row ? [...every, row.id] : every);
    }
  });
}

function fillCell(cell, stage) {
  if (!cell) return;
  const [said, time] = cell.children;
  cell.dataset.state = said.textContent = stage.state;
  cell.title = `${stage.name}: ${stage.state}`;
  const counts = stage.state === "active";
  delete time.dataset.since;
  time.textContent = "";
  if (stage.started_at != null && stage.state !== "skipped") {
    if (counts) time.dataset.since = stage.started_at;
    time.dataset.tight = "";
    if (stage.settled_at != null) time.textContent = label(stage.settled_at - stage.started_at, true);
  }
  if (counts) tick();
}

/** An attempt: its parts are fetched again after each event about it; the console grows by itself. */
function attempt() {
  const parts = ["head", "stages", "artifacts", "history"];
  const log = document.getElementById("log");
  showProof(log);
  let tailing = tail(log, page.attempt);
  mark();
  events(`/api/v1/runs/${page.run}/events`, Number(page.after), async (event) => {
    if (event.attempt !== page.attempt) return;
    if (event.kind === "dump_progress") {
      const size = document.querySelector("[data-dump]");
      if (size) size.textContent = bytes(event.bytes);
      return;
    }
    await refresh(tailing ? parts : [...parts, "console"]);
    if (!tailing) tailing = tail(document.getElementById("log"), page.attempt);
    mark();
  });
}

/** Brings the line that blames the kernel into view, unless the address names another. */
function showProof(log) {
  if (location.hash || log.dataset.live === "true") return;
  const proofs = document.querySelectorAll('#stages [data-state="failed"] a[data-proof][href^="#L"]');
  const line = document.getElementById(proofs[proofs.length - 1]?.hash.slice(1));
  if (line) log.scrollTop = line.offsetTop - log.clientHeight / 2;
}

function bytes(size) {
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (size >= 1024 && unit < units.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return `${unit ? size.toFixed(1) : size} ${units[unit]}`;
}

setInterval(tick, 1000);
if (page.page === "run" && page.open === "true") run();
if (page.page === "attempt") {
  if (page.open === "true") attempt();
  else showProof(document.getElementById("log"));
}
if (page.page === "console") tail(document.getElementById("log"), page.attempt);
if (page.page === "list") {
  // Lists have no event stream; a look every ten seconds, only while somebody looks.
  setInterval(() => document.visibilityState === "visible" && refresh(["list"]), 10_000);
}
