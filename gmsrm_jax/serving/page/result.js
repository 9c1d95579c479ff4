/** The result: compared with what was, chosen among its versions, kept, or gone on from. */

import { $, press, pressed, say } from "./dom.js";
import { change, opsOf, state, states, watch } from "./history.js";
import { overlay, toPicture, toStage, watchView, zoom } from "./view.js";

const THUMBNAIL = 240; // pixels of a version's longer side, at least
let chosen = 0;
let split = 50; // per cent of the picture, from the left, that shows it as it was
let strip = []; // the pictures gone on from, the first one first
let held = new Set(); // addresses of the files that a state or the strip shows

const shown = () => document.body.dataset.view === "result";

// ---- compare

function show() {
  const slides = shown() && pressed("slider");
  $("split").hidden = !slides;
  $("after").style.clipPath = slides ? `inset(0 0 0 ${split}%)` : "";
  for (const tag of document.querySelectorAll(".tag")) tag.hidden = !slides;
  $("split").setAttribute("aria-valuenow", Math.round(split));
  if (!shown()) return;
  const { width, height } = state().picture;
  $("split").style.left = `${toStage([(split / 100) * width, 0])[0]}px`;
  const context = overlay();
  if (pressed("outline")) drawOutline(context, toStage([0, 0]), width * zoom(), height * zoom());
}
watchView(show);

/** A white line on a black one around the hole. */
function drawOutline(context, [x, y], width, height) {
  const canvas = new OffscreenCanvas(context.canvas.width, context.canvas.height);
  const layer = canvas.getContext("2d");
  layer.setTransform(context.getTransform());
  for (const [colour, thick] of [["#000", 3], ["#fff", 1.5]]) {
    layer.globalCompositeOperation = "source-over";
    layer.clearRect(0, 0, canvas.width, canvas.height);
    for (let turn = 0; turn < 16; turn += 1) {
      const [across, down] = [Math.cos((turn * Math.PI) / 8), Math.sin((turn * Math.PI) / 8)];
      layer.drawImage($("paint"), x + thick * across, y + thick * down, width, height);
    }
    layer.globalCompositeOperation = "source-in";
    layer.fillStyle = colour;
    layer.fillRect(0, 0, canvas.width, canvas.height);
    layer.globalCompositeOperation = "destination-out";
    layer.drawImage($("paint"), x, y, width, height);
    context.drawImage(canvas, 0, 0, canvas.width, canvas.height, 0, 0, $("overlay").clientWidth, $("overlay").clientHeight);
  }
}

function setSplit(value) {
  split = Math.min(100, Math.max(0, value));
  show();
}

$("split").addEventListener("pointerdown", (event) => $("split").setPointerCapture(event.pointerId));
$("split").addEventListener("pointermove", (event) => {
  if (!$("split").hasPointerCapture(event.pointerId)) return;
  const x = event.clientX - $("stage").getBoundingClientRect().left;
  setSplit((100 * toPicture([x, 0])[0]) / state().picture.width);
});
$("split").addEventListener("keydown", (event) => {
  const steps = { ArrowLeft: -1, ArrowRight: 1, PageDown: -10, PageUp: 10, Home: -100, End: 100 }[event.key];
  if (!steps) return;
  event.preventDefault();
  event.stopPropagation();
  setSplit(split + steps);
});

for (const name of ["slider", "outline"]) {
  $(name).addEventListener("click", () => {
    press(name);
    show();
  });
}

/** Shows the picture as it was, or the result again. */
export const showBefore = (on) => $("stage").classList.toggle("before", on && shown());
$("hold").addEventListener("pointerdown", () => showBefore(true));
$("hold").addEventListener("keydown", (event) => [" ", "Enter"].includes(event.key) && showBefore(true));
for (const kind of ["pointerup", "pointercancel", "keyup", "blur"]) addEventListener(kind, () => showBefore(false));

// ---- versions

/** The hole of a fill with some of what is around it, enlarged. */
function thumbnail(url, { left, top, right, bottom }, { width, height }) {
  const [across, down] = [right - left, bottom - top].map((length) => 1.25 * length + 16);
  const wide = Math.min(width, Math.max(across, down / 1.5)); // neither a strip nor a column
  const high = Math.min(height, Math.max(down, across / 1.5));
  const x = Math.min(width - wide, Math.max(0, (left + right - wide) / 2));
  const y = Math.min(height - high, Math.max(0, (top + bottom - high) / 2));
  const scale = Math.min(2 * THUMBNAIL, Math.max(THUMBNAIL, wide, high)) / Math.max(wide, high);
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [Math.ceil(wide * scale), Math.ceil(high * scale)];
  const image = Object.assign(new Image(), { src: url });
  image.decode().then(() => {
    canvas.getContext("2d").drawImage(image, x, y, wide, high, 0, 0, canvas.width, canvas.height);
  });
  return canvas;
}

function showFills({ picture, result }) {
  $("fills").replaceChildren(
    ...result.fills.map(({ url }, number) => {
      const button = document.createElement("button");
      button.append(thumbnail(url, result.extent, picture), `Version ${number + 1}`);
      button.addEventListener("click", () => choose(number));
      return button;
    }),
  );
  split = (100 * result.extent.middle) / picture.width;
}

/** Shows a version of the result; one beyond the last is the first. */
export function choose(number) {
  const { picture, result } = state();
  const { fills, seed } = result;
  chosen = (number + fills.length) % fills.length;
  [...$("fills").children].forEach((button, other) => button.setAttribute("aria-pressed", String(other === chosen)));
  $("after").src = $("download").href = fills[chosen].url;
  $("download").download = `${picture.name.replace(/\.[^.]*$/, "")}_filled_${chosen + 1}.png`;
  $("caption").textContent = `Version ${chosen + 1} of ${fills.length} · seed ${seed}`;
}
export const chooseNext = (steps) => shown() && choose(chosen + steps);

// ---- go on

$("back").addEventListener("click", () => change({ result: null }));
$("onward").addEventListener("click", () => {
  const { picture, result } = state();
  const next = { ...picture, ...result.fills[chosen], root: picture.root };
  strip = [...strip, next];
  change({ picture: next, ops: [], result: null });
  say("This fill is the picture now: paint over what else is to go.");
});

function showStrip(current) {
  const pictures = [current.root, ...strip.filter((each) => each.root === current.root)];
  $("strip").hidden = pictures.length === 1;
  $("strip").replaceChildren(
    ...pictures.map((picture, number) => {
      const button = document.createElement("button");
      const name = number ? `Fill ${number}` : "Original";
      button.append(Object.assign(new Image(), { src: picture.url, alt: "" }), name);
      button.setAttribute("aria-current", String(picture === current));
      button.addEventListener("click", () => {
        if (picture !== state().picture || state().result) change({ picture, ops: opsOf(picture), result: null });
      });
      return button;
    }),
  );
}

/** Lets go of the files that no state shows any more, nor the strip of a picture that one shows. */
function letGo() {
  const roots = new Set(states.map(({ picture }) => picture.root));
  strip = strip.filter(({ root }) => roots.has(root));
  const files = [...roots, ...strip, ...states.flatMap(({ picture, result }) => [picture, ...(result?.fills ?? [])])];
  const shown = new Set(files.map(({ url }) => url));
  for (const url of held) if (!shown.has(url)) URL.revokeObjectURL(url);
  held = shown;
}

watch((now, before) => {
  letGo();
  if (now.picture !== before?.picture) $("picture").src = now.picture.url;
  if (now.result && now.result !== before?.result) {
    showFills(now);
    choose(0);
  }
  if (!now.result) $("after").removeAttribute("src");
  showStrip(now.picture);
  show();
});
