/** The picture on its stage: where it lies, how large it is shown, and which pointer does what. */

import { $, busy } from "./dom.js";
import { watch } from "./history.js";

const MOST = 32; // pixels of the window for one of the picture
const LARGEST_FIT = 8;
const VISIBLE = 60; // so much of the picture stays on the stage

const stage = $("stage");
const watchers = [];
let scale = 1; // pixels of the window per pixel of the picture
let [left, top] = [0, 0]; // of the picture on the stage
let [width, height] = [1, 1];
let fitted = true;
let tool = null; // what a pointer does: {begin, move, end, cancel, hover, wheel}; without one it moves the picture
let space = false;

export const zoom = () => scale;
export const use = (given) => (tool = given);

/** Calls back whenever the picture lies elsewhere or has another size. */
export const watchView = (call) => watchers.push(call);

export const toStage = ([x, y]) => [left + x * scale, top + y * scale];
export const toPicture = ([x, y]) => [(x - left) / scale, (y - top) / scale];

/** Where an event is on the stage. */
function place(event) {
  const box = stage.getBoundingClientRect();
  return [event.clientX - box.left, event.clientY - box.top];
}

const middle = () => [stage.clientWidth / 2, stage.clientHeight / 2];

function show() {
  left = Math.min(Math.max(left, VISIBLE - width * scale), stage.clientWidth - VISIBLE);
  top = Math.min(Math.max(top, VISIBLE - height * scale), stage.clientHeight - VISIBLE);
  Object.assign($("board").style, {
    left: `${left}px`,
    top: `${top}px`,
    width: `${width * scale}px`,
    height: `${height * scale}px`,
  });
  $("board").classList.toggle("small", scale >= 3);
  $("full").textContent = `${Math.round(100 * scale)} %`;
  for (const call of watchers) call();
}

function fitScale() {
  const room = Math.min(stage.clientWidth, stage.clientHeight) > 500 ? 24 : 8;
  const [across, down] = [stage.clientWidth - 2 * room, stage.clientHeight - 2 * room];
  return Math.min(LARGEST_FIT, across / width, down / height);
}

/** Shows all of the picture. */
export function fit() {
  fitted = true;
  scale = Math.max(fitScale(), 0.001);
  left = (stage.clientWidth - width * scale) / 2;
  top = (stage.clientHeight - height * scale) / 2;
  show();
}

/** Shows the picture at another scale; the point of the stage stays where it is. */
export function zoomTo(next, [x, y] = middle()) {
  fitted = false;
  const [across, down] = toPicture([x, y]);
  scale = Math.min(MOST, Math.max(next, Math.min(fitScale(), 1) / 4));
  [left, top] = [x - across * scale, y - down * scale];
  show();
}

function pan(across, down) {
  fitted = false;
  [left, top] = [left + across, top + down];
  show();
}

/** An empty canvas over the stage, in its pixels. */
export function overlay() {
  const [canvas, ratio] = [$("overlay"), devicePixelRatio];
  const [across, down] = [stage.clientWidth, stage.clientHeight];
  const [wide, high] = [across, down].map((length) => Math.round(length * ratio));
  if (canvas.width !== wide || canvas.height !== high) [canvas.width, canvas.height] = [wide, high];
  const context = canvas.getContext("2d");
  context.setTransform(wide / across, 0, 0, high / down, 0, 0);
  context.clearRect(0, 0, across, down);
  return context;
}

watch((now, before) => {
  document.body.dataset.view = now.result ? "result" : "edit";
  if (now.picture === before?.picture) return;
  const same = now.picture.width === width && now.picture.height === height;
  ({ width, height } = now.picture);
  if (!same || !before) fit();
});
new ResizeObserver(() => (fitted ? fit() : show())).observe(stage);

$("in").addEventListener("click", () => zoomTo(scale * 1.4));
$("out").addEventListener("click", () => zoomTo(scale / 1.4));
$("full").addEventListener("click", () => zoomTo(1));
$("fit").addEventListener("click", fit);

// ---- pointers: one is the tool's, two move and zoom, and never paint

const pointers = new Map(); // id to its last place
let gesture = null; // "tool", "pan" or "pinch"

stage.addEventListener("pointerdown", (event) => {
  if (event.target.closest("#split")) return;
  if (event.button !== 1) stage.focus({ preventScroll: true });
  event.preventDefault();
  stage.setPointerCapture(event.pointerId);
  pointers.set(event.pointerId, place(event));
  if (pointers.size > 1) {
    if (gesture === "tool") tool?.cancel();
    gesture = pointers.size === 2 ? "pinch" : null;
  } else if (event.button === 1 || (event.button === 0 && (space || !tool || busy()))) {
    gesture = "pan";
    stage.classList.add("moving");
  } else if (event.button === 0) {
    gesture = "tool";
    tool.begin(toPicture(place(event)));
  }
});

stage.addEventListener("pointermove", (event) => {
  const [here, before] = [place(event), pointers.get(event.pointerId)];
  if (event.pointerType !== "touch") tool?.hover(toPicture(here));
  if (!before) return;
  if (gesture === "tool") {
    const events = event.getCoalescedEvents?.() ?? [];
    tool?.move((events.length ? events : [event]).map((each) => toPicture(place(each))));
  } else if (gesture === "pan") {
    pan(here[0] - before[0], here[1] - before[1]);
  } else if (gesture === "pinch") {
    const [, other] = [...pointers].find(([id]) => id !== event.pointerId);
    const distance = (point) => Math.hypot(point[0] - other[0], point[1] - other[1]);
    const between = (point) => [(point[0] + other[0]) / 2, (point[1] + other[1]) / 2];
    pan(between(here)[0] - between(before)[0], between(here)[1] - between(before)[1]);
    if (distance(before) > 0) zoomTo((scale * distance(here)) / distance(before), between(here));
  }
  pointers.set(event.pointerId, here);
});

function lift(event) {
  if (!pointers.delete(event.pointerId)) return;
  if (gesture === "tool") tool?.end();
  if (event.pointerType === "touch") tool?.hover(null);
  stage.classList.remove("moving");
  gesture = null; // the finger that is left of two does nothing
}
stage.addEventListener("pointerup", lift);
stage.addEventListener("pointercancel", lift); // by the system, which is no reason to lose a line
stage.addEventListener("pointerleave", () => tool?.hover(null));

stage.addEventListener(
  "wheel",
  (event) => {
    event.preventDefault();
    const steps = Math.min(30, Math.max(-30, event.deltaY * (event.deltaMode ? 30 : 1)));
    if (tool && !event.ctrlKey && !event.metaKey) return tool.wheel(-steps / 30);
    zoomTo(scale * Math.exp(-steps / 120), place(event));
  },
  { passive: false },
);

// While space is held the picture is moved; on a button that has the focus, space presses that.
const setSpace = (on) => {
  space = on;
  stage.classList.toggle("hand", on);
};
addEventListener("keydown", (event) => {
  if (event.key !== " " || event.target.closest("button, input, select, summary, a, dialog")) return;
  event.preventDefault();
  if (document.body.dataset.view !== "start") setSpace(true);
});
addEventListener("keyup", (event) => event.key === " " && setSpace(false));
addEventListener("blur", () => setSpace(false));
