/** The page: pictures come in, buttons and keys do what the parts offer, and it says what runs here. */

import { $, busy, press, remember, remembered, say } from "./dom.js";
import { change, redo, state, undo, watch } from "./history.js";
import * as hole from "./hole.js";
import * as request from "./request.js";
import * as result from "./result.js";
import { fit, zoom, zoomTo } from "./view.js";

const SAMPLES = {
  optician: "The name over the windows",
  walkers: "The people who walk by",
  bakery: "The letters and the poster",
  roadworks: "The sign in front of the house",
  pharmacy: "The writing on the wall",
  clinic: "The man in the gateway",
};

let limits = { pixels: Infinity };

// ---- pictures

let openings = 0;

/** Counts an opening; returns what tells whether it is still the newest, which alone is shown. */
function begin() {
  const mine = (openings += 1);
  return () => mine === openings;
}

/** Opens a picture; of a hole that comes along, a file. */
async function open(file, mask = null, newest = null) {
  if (!file) return;
  newest ??= begin();
  const image = Object.assign(new Image(), { src: URL.createObjectURL(file) });
  const refuse = (text) => {
    URL.revokeObjectURL(image.src);
    if (newest()) tell(text);
  };
  try {
    await image.decode();
  } catch {
    return refuse(`${file.name || "This"} is no picture that this browser can show: save it as PNG or JPEG.`);
  }
  const [width, height] = [image.naturalWidth, image.naturalHeight];
  if (width * height > limits.pixels) {
    const most = Math.floor(limits.pixels / 1e6);
    return refuse(`${file.name} has ${Math.round((width * height) / 1e6)} million pixels; at most ${most} are taken here.`);
  }
  const ops = mask ? [await hole.readMask(mask, width, height)] : [];
  if (!newest()) return URL.revokeObjectURL(image.src);
  request.cancel();
  const picture = { file, url: image.src, width, height, name: file.name || "picture" };
  picture.root = picture;
  change({ picture, ops, result: null });
  $("stage").focus({ preventScroll: true });
  const next = mask ? "The hole is painted already: fill it, or change it." : "Paint over what is to be filled.";
  say(`${width} × ${height} pixels. ${next}`);
}

/** Says what is wrong with a picture, on whichever screen is shown. */
function tell(text) {
  say(text, true);
  $("refused").textContent = text;
}

for (const id of ["file", "camera"]) {
  $(id).addEventListener("change", () => {
    open($(id).files[0]);
    $(id).value = ""; // so that the same file can be chosen again
  });
}
addEventListener("paste", (event) => open([...event.clipboardData.files].find((f) => f.type.startsWith("image/"))));
addEventListener("dragover", (event) => {
  event.preventDefault();
  document.body.classList.add("over");
});
addEventListener("dragleave", (event) => event.relatedTarget ?? document.body.classList.remove("over"));
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("over");
  open(event.dataTransfer.files[0]);
});

async function openSample(name) {
  const newest = begin();
  const files = await Promise.all([`${name}.webp`, `${name}_hole.png`].map(async (file) => {
    const answer = await fetch(`samples/${file}`);
    return new File([await answer.blob()], file);
  }));
  if (newest()) await open(...files, newest);
}

$("samples").replaceChildren(
  ...Object.entries(SAMPLES).map(([name, text]) => {
    const [item, button, cover] = ["li", "button", "span"].map((kind) => document.createElement(kind));
    cover.className = "hole";
    cover.style.maskImage = `url(samples/${name}_hole.png)`;
    const frame = Object.assign(document.createElement("span"), { className: "frame" });
    frame.append(Object.assign(new Image(), { src: `samples/${name}.webp`, alt: "" }), cover);
    button.append(frame, text);
    button.addEventListener("click", () => openSample(name).catch(() => tell("The server cannot be reached.")));
    item.append(button);
    return item;
  }),
);

// ---- filling

$("options").addEventListener("submit", async (event) => {
  event.preventDefault();
  hole.finish();
  const asked = state();
  const filled = await request.fill();
  if (!filled || state() !== asked) return; // another picture came meanwhile: its hole is not this one
  const fills = filled.files.map((file) => ({ file, url: URL.createObjectURL(file) }));
  change({ result: { ...filled, fills } });
  say(`Filled in ${filled.seconds}.`);
  $("stage").focus({ preventScroll: true });
});
// A number that is out of range is told where it stands, which may be folded away.
$("options").addEventListener("invalid", () => ($("more").open = true), true);
$("another").addEventListener("click", () => ($("seed").value = crypto.getRandomValues(new Uint32Array(1))[0]));
$("strategy").addEventListener("change", showCost);

/** Says what the chosen way costs, or that this picture is too large for it. */
function showCost() {
  const { picture } = state() ?? {};
  const whole = $("strategy").querySelector("[value=full]");
  const [chosen] = $("strategy").selectedOptions;
  whole.disabled = picture && request.isTooLargeForFull(picture);
  const refusal = chosen === whole && whole.disabled ? request.tooLargeForFull(picture) : "";
  $("strategy").setCustomValidity(refusal);
  $("cost").textContent = refusal || chosen.dataset.cost;
  $("cost").classList.toggle("bad", Boolean(refusal));
}

watch(() => {
  showCost();
  $("refused").textContent = "";
  say("");
});
$("undo").addEventListener("click", undo);
$("redo").addEventListener("click", redo);

// ---- keys

// What to press, what it does, in words; an element's name stands for a click on it.
const KEYS = [
  [["b"], "brush", "Brush"],
  [["r"], "rectangle", "Rectangle"],
  [["l"], "lasso", "Lasso"],
  [["e"], "erase", "Erase instead of paint"],
  [["[", "]"], (key) => hole.resize(key === "[" ? 1 / 1.15 : 1.15), "Smaller, larger brush (also: the wheel)"],
  [["i"], "invert", "Invert the hole"],
  [["x"], "clear", "Clear the hole"],
  [["Ctrl+z"], undo, "Undo"],
  [["Ctrl+Shift+z", "Ctrl+y"], redo, "Redo"],
  [["Ctrl+Enter"], "run", "Fill the hole"],
  [["Escape"], () => request.cancel(), "Cancel"],
  [["c"], () => result.showBefore(true), "Hold: see the picture as it was"],
  [["s"], "slider", "Compare with a slider"],
  [["o"], "outline", "Outline of the hole"],
  [["ArrowLeft", "ArrowRight"], (key) => result.chooseNext(key === "ArrowLeft" ? -1 : 1), "Other version of the result"],
  [["g"], "onward", "Go on from the result"],
  [["d"], "download", "Download the result"],
  [["+", "-"], (key) => zoomTo(zoom() * (key === "+" ? 1.4 : 1 / 1.4)), "Zoom (also: Ctrl and the wheel, two fingers)"],
  [["0", "1"], (key) => (key === "0" ? fit() : zoomTo(1)), "Show all of it, or at its own size"],
  [["?"], "help", "This list"],
];
const OTHER_KEYS = [
  ["Space + drag", "Move the picture"],
  ["Arrows, Enter", "On the picture: move the brush; put it down or lift it"],
];
const NAMES = { ArrowLeft: "←", ArrowRight: "→", Escape: "Esc", "Ctrl+z": "Ctrl+Z", "Ctrl+Shift+z": "Ctrl+Shift+Z", "Ctrl+y": "Ctrl+Y" };
const nameOf = (key) => NAMES[key] ?? (key.length === 1 ? key.toUpperCase() : key);

const within = (id) => $(id).closest(".editing") ? "edit" : $(id).closest(".finished") ? "result" : null;

addEventListener("keydown", (event) => {
  const { view } = document.body.dataset;
  const third = event.getModifierState("AltGraph"); // by which many keyboards reach [ and ]
  const control = !third && (event.ctrlKey || event.metaKey) ? "Ctrl+" : "";
  // What is typed into a field is the field's, but for what is pressed with Ctrl.
  if (event.target.closest(control ? "dialog" : "input[type=number], select, dialog")) return;
  if ((event.altKey && !third) || (view === "start" && event.key !== "?")) return;
  const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
  const pressedKey = `${control}${control && event.shiftKey ? "Shift+" : ""}${key}`;
  const [, action] = KEYS.find(([keys]) => keys.includes(pressedKey)) ?? [];
  if (!action || (busy() && !["Escape", "+", "-", "0", "1", "?"].includes(pressedKey))) return;
  if (event.key.startsWith("Arrow") && (view !== "result" || event.target.closest("input"))) return;
  if (typeof action === "string") {
    if (within(action) && within(action) !== view) return;
    $(action).click();
  } else action(pressedKey);
  event.preventDefault();
});

for (const [keys, , text] of [...KEYS, ...OTHER_KEYS.map(([key, text]) => [[key], null, text])]) {
  const [name, meaning] = [$("table").insertRow(), document.createElement("td")];
  const cell = name.insertCell();
  keys.forEach((key, number) => {
    if (number) cell.append(" ");
    cell.append(Object.assign(document.createElement("kbd"), { textContent: nameOf(key) }));
  });
  meaning.textContent = text;
  name.append(meaning);
}
for (const [keys, action] of KEYS) {
  if (typeof action === "string") $(action).title ||= `${$(action).textContent.trim()} (${nameOf(keys[0])})`;
}
$("help").addEventListener("click", () => $("shortcuts").showModal());
$("shortcuts").addEventListener("click", (event) => event.target === $("shortcuts") && $("shortcuts").close());

// ---- theme

const THEMES = { "": "Theme: like the system", light: "Theme: light", dark: "Theme: dark" };

function setTheme(theme) {
  document.documentElement.dataset.theme = theme in THEMES ? theme : "";
  $("theme").title = THEMES[document.documentElement.dataset.theme];
  $("theme").setAttribute("aria-label", $("theme").title);
  remember({ theme });
}
// To the other one than is seen: what the system has is not chosen but followed.
$("theme").addEventListener("click", () => {
  const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  const other = (document.documentElement.dataset.theme || system) === "dark" ? "light" : "dark";
  setTheme(other === system ? "" : other);
});

// ---- at the start

async function describe() {
  $("docs").open = location.pathname.endsWith("/docs");
  $("curl").textContent = `curl -F image=@photo.jpg -F mask=@mask.png ${new URL("inpaint", location)} -o filled.png`;
  const [health, { paths }] = await Promise.all(["health", "openapi.json"].map(async (x) => (await fetch(x)).json()));
  const { model, image_size: size, device, version, samples } = health;
  ({ limits } = health);
  request.setLimits(limits);
  $("strategy").querySelector("[value=full]").append(`, ${request.fullSize()}`);
  showCost();
  $("model").textContent = `${model}, trained at ${size} × ${size}, on ${device}, version ${version}`;
  $("num_samples").max = samples;
  $("num_samples").disabled = samples === 1;
  const { description, requestBody } = paths["/inpaint"].post;
  $("description").textContent = description;
  const { properties } = requestBody.content["multipart/form-data"].schema;
  for (const [name, { description, minimum, maximum, enum: names, default: value }] of Object.entries(properties)) {
    const values = names ? names.join(", ") : maximum ? `${minimum} to ${maximum}` : "";
    const line = $("fields").insertRow();
    const cells = [name, description, values, value == null ? "" : `default ${value}`];
    for (const text of cells) line.insertCell().textContent = text;
  }
}

setTheme(remembered().theme ?? "");
hole.choose(remembered().tool);
press("erase", false);
showCost();
$("more").open = matchMedia("(min-width: 900px)").matches;
describe().catch(() => tell("The server cannot be reached."));
