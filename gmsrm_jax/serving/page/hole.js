/** The hole: what makes it, the tools that draw it, and the mask that is sent.
 *
 * A hole is a list of operations, drawn one after the other in pixels of the picture:
 * {kind: "stroke", size, erase, points}, {kind: "area", erase, points}, {kind: "invert"}, {kind: "mask", bitmap}.
 */

import { $, busy, pngOf, press, pressed, remember, remembered, say } from "./dom.js";
import { canRedo, canUndo, change, finishWith, state, undo, watch } from "./history.js";
import { overlay, toPicture, toStage, use, watchView, zoom } from "./view.js";

const COLOUR = "#ff2d6f";
const canvas = $("paint");
const paint = canvas.getContext("2d");
const TOOLS = ["brush", "rectangle", "lasso"];

let drawn = null; // the operation that is being drawn
let cursor = null; // where the brush is, in pixels of the picture
let { tool = "brush", share = 0.07 } = remembered(); // of the brush: its size as a share of the picture's shorter side

const ops = () => state().ops;
const commit = (op) => change(({ ops }) => ({ ops: [...ops, op] }));
const size = () => Math.max(1, share * Math.min(canvas.width, canvas.height));

// ---- drawing

function path(points) {
  paint.beginPath();
  paint.moveTo(...points[0]);
  // A line of no length would not be drawn, though a click is to leave a dot.
  for (const [x, y] of points) paint.lineTo(x + 0.01, y);
}

/** Draws an operation; of a stroke, what comes after its point number `first`. */
function draw(op, first = 0) {
  paint.globalCompositeOperation = op.erase ? "destination-out" : "source-over";
  paint.fillStyle = paint.strokeStyle = COLOUR;
  if (op.kind === "mask") return paint.drawImage(op.bitmap, 0, 0);
  if (op.kind === "invert") {
    paint.globalCompositeOperation = "source-out"; // colour where there was none, and none where there was
    return paint.fillRect(0, 0, canvas.width, canvas.height);
  }
  path(op.points.slice(first));
  if (op.kind === "area") return paint.fill();
  paint.lineWidth = op.size;
  paint.lineCap = paint.lineJoin = "round";
  paint.stroke();
}

function redraw() {
  paint.clearRect(0, 0, canvas.width, canvas.height);
  for (const op of ops()) draw(op);
}

/** Begins an operation, or ends it with null. What is begun can be cleared and undone already. */
function setDrawn(op) {
  drawn = op;
  $("clear").disabled = !drawn && ops().length === 0;
  $("undo").disabled = !drawn && !canUndo();
  $("redo").disabled = drawn !== null || !canRedo();
}

watch(({ picture, result }, before) => {
  setDrawn(null);
  use(result ? null : hand);
  if (picture !== before?.picture) {
    [canvas.width, canvas.height] = [picture.width, picture.height];
    cursor = null;
  }
  redraw();
  show();
});

/** Shows the brush, and the edge of an area that is being drawn. */
function show() {
  const editing = document.body.dataset.view === "edit";
  $("pixels").textContent = `${Math.round(size())} px`;
  $("size").value = toSlider(share);
  $("size").setAttribute("aria-valuetext", $("pixels").textContent);
  const ring = editing && cursor !== null;
  $("ring").hidden = !ring;
  $("ring").classList.toggle("cross", tool !== "brush");
  if (ring) {
    const [[x, y], wide] = [toStage(cursor), tool === "brush" ? size() * zoom() : 17];
    Object.assign($("ring").style, { left: `${x}px`, top: `${y}px`, width: `${wide}px`, height: `${wide}px` });
  }
  if (!editing) return;
  const context = overlay();
  if (drawn?.kind !== "area") return;
  context.beginPath();
  for (const point of drawn.points) context.lineTo(...toStage(point));
  context.closePath();
  context.fillStyle = drawn.erase ? "#fff6" : `${COLOUR}66`;
  context.fill();
  for (const [colour, dash] of [["#000", []], ["#fff", [5, 5]]]) {
    context.strokeStyle = colour;
    context.setLineDash(dash);
    context.stroke();
  }
}
watchView(show);

// ---- tools

const corners = ([left, top], [right, bottom]) => [[left, top], [right, top], [right, bottom], [left, bottom]];

/** Keeps what is being drawn, such as a line whose brush was put down and not lifted; returns whether there was any. */
export function finish() {
  const done = drawn;
  if (!done) return false;
  setDrawn(null);
  const kept = done.kind === "stroke" || done.points.length > 2;
  if (kept) commit(done);
  else show();
  return kept;
}
finishWith(finish);

const hand = {
  begin(point) {
    finish(); // a line that the keyboard began
    cursor = point;
    const kind = tool === "brush" ? "stroke" : "area";
    setDrawn({ kind, size: size(), erase: pressed("erase"), points: [point] });
    if (tool === "brush") draw(drawn);
    show();
  },
  move(points) {
    cursor = points.at(-1);
    if (!drawn) return show();
    const first = drawn.points.length - 1;
    if (tool === "rectangle") drawn.points = corners(drawn.points[0], cursor);
    else drawn.points.push(...points);
    if (tool === "brush") draw(drawn, first);
    show();
  },
  end: finish,
  cancel() {
    setDrawn(null);
    redraw();
    show();
  },
  hover(point) {
    if (!drawn) cursor = point;
    show();
  },
  wheel: (steps) => resize(1.15 ** steps),
};

export function choose(name) {
  finish();
  tool = TOOLS.includes(name) ? name : "brush";
  for (const each of TOOLS) press(each, each === tool);
  remember({ tool });
  show();
}

// The slider's ends are 0.3 % and 60 % of the shorter side, with equal ratios between.
const toShare = (value) => 0.003 * 200 ** (value / 100);
const toSlider = (value) => (100 * Math.log(value / 0.003)) / Math.log(200);

function setShare(value) {
  share = Math.min(0.6, Math.max(0.003, value));
  remember({ share });
  show();
}
export const resize = (factor) => setShare(share * factor);
$("size").addEventListener("input", () => setShare(toShare($("size").value)));

for (const name of TOOLS) $(name).addEventListener("click", () => choose(name));
$("erase").addEventListener("click", () => {
  finish();
  press("erase");
});
$("invert").addEventListener("click", () => commit({ kind: "invert" }));
$("clear").addEventListener("click", () => change({ ops: [] }));

// With the keyboard alone: arrows move the brush, Enter puts it down and lifts it.
const ARROWS = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] };

$("stage").addEventListener("blur", finish);
$("stage").addEventListener("keydown", (event) => {
  if (document.body.dataset.view !== "edit" || busy() || event.target !== $("stage")) return;
  const arrow = ARROWS[event.key];
  if (!arrow && !["Enter", "Escape"].includes(event.key)) return;
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  event.preventDefault();
  const step = event.shiftKey ? 1 / zoom() : Math.max(1 / zoom(), size() / 3);
  cursor ??= toPicture([$("stage").clientWidth / 2, $("stage").clientHeight / 2]);
  const inside = (value, limit) => Math.min(limit, Math.max(0, value));
  if (event.key === "Escape") return finish() && undo(); // so that it can be redone
  if (event.key === "Enter") return drawn ? finish() : hand.begin(cursor);
  const [x, y] = [cursor[0] + arrow[0] * step, cursor[1] + arrow[1] * step];
  hand.move([[inside(x, canvas.width), inside(y, canvas.height)]]);
});

// ---- masks

/** The hole as a black and white PNG of the picture's size. */
export function maskFile() {
  const copy = Object.assign(document.createElement("canvas"), { width: canvas.width, height: canvas.height });
  const context = copy.getContext("2d");
  context.drawImage(canvas, 0, 0);
  for (const [operation, colour] of [["source-in", "#fff"], ["destination-over", "#000"]]) {
    context.globalCompositeOperation = operation;
    context.fillStyle = colour;
    context.fillRect(0, 0, copy.width, copy.height);
  }
  // toBlob would wait for an idle moment, which after a click can be a second away.
  return pngOf(copy.toDataURL().split(",")[1]);
}

/** The box around the hole and the column that halves it, in pixels of the picture; null where there is no hole. */
export function extent() {
  const columns = new Float64Array(canvas.width);
  let [top, bottom, total] = [Infinity, -1, 0];
  const part = new OffscreenCanvas(canvas.width, 256);
  const context = part.getContext("2d", { willReadFrequently: true });
  for (let first = 0; first < canvas.height; first += part.height) { // a bounded piece of a large picture
    context.clearRect(0, 0, part.width, part.height);
    context.drawImage(canvas, 0, -first);
    const { data } = context.getImageData(0, 0, part.width, part.height);
    for (let at = 3; at < data.length; at += 4) {
      if (data[at] < 128) continue;
      const pixel = (at - 3) / 4;
      columns[pixel % canvas.width] += 1;
      bottom = first + Math.floor(pixel / canvas.width);
      top = Math.min(top, bottom);
      total += 1;
    }
  }
  if (!total) return null;
  let [left, right, middle, sum] = [-1, 0, 0, 0];
  columns.forEach((count, column) => {
    if (count && left < 0) left = column;
    if (count) right = column + 1;
    if (sum < total / 2) middle = column + 0.5;
    sum += count;
  });
  return { left, top, right, bottom: bottom + 1, middle };
}

/** Reads a hole from a picture of the same size: white, or what is transparent in it. */
export async function readMask(file, width, height) {
  const bitmap = await createImageBitmap(file);
  if (bitmap.width !== width || bitmap.height !== height) {
    const sizes = `it has ${bitmap.width} × ${bitmap.height} pixels, the picture ${width} × ${height}`;
    throw new RangeError(`This hole does not fit: ${sizes}.`);
  }
  const context = new OffscreenCanvas(width, height).getContext("2d");
  context.drawImage(bitmap, 0, 0);
  const pixels = context.getImageData(0, 0, width, height);
  const { data } = pixels;
  let transparent = false;
  for (let at = 3; at < data.length; at += 4) transparent ||= data[at] < 255;
  for (let at = 0; at < data.length; at += 4) {
    const grey = (data[at] + data[at + 1] + data[at + 2]) / 3;
    const hole = transparent ? data[at + 3] < 128 : grey > 127;
    data.set([255, 45, 111, hole ? 255 : 0], at);
  }
  return { kind: "mask", bitmap: await createImageBitmap(pixels) };
}

$("mask").addEventListener("change", async () => {
  const [[file], { picture }] = [$("mask").files, state()];
  $("mask").value = ""; // so that the same file can be chosen again
  try {
    const op = await readMask(file, picture.width, picture.height);
    if (state().picture !== picture) return;
    if (busy()) say("This hole came too late for the fill that is under way: load it again afterwards.", true);
    else change({ ops: [op] });
  } catch (error) {
    const unreadable = `${file.name} is no picture that this browser can read: save it as PNG.`;
    say(error instanceof RangeError ? error.message : unreadable, true);
  }
});

$("keep").addEventListener("click", () => {
  const stem = state().picture.name.replace(/\.[^.]*$/, "");
  const url = URL.createObjectURL(maskFile());
  Object.assign(document.createElement("a"), { href: url, download: `${stem}_mask.png` }).click();
  URL.revokeObjectURL(url);
});
