"use strict";

const $ = (id) => document.getElementById(id);
const paint = $("paint").getContext("2d");

let file = null; // the picture as it was given; the server gets these bytes, not the browser's pixels
let strokes = []; // {size, erase, points} in pixels of the picture, so that undo can draw all but the last again
let stroke = null; // the one that is being drawn
let request = null; // AbortController of the request that runs
let fills = []; // {url, blob} of the last answer
let answered = null; // {width, height, stem} of the picture that they belong to
let chosen = 0;

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

// ---- the picture

async function open(given) {
  if (!given) return;
  const image = Object.assign(new Image(), { src: URL.createObjectURL(given) });
  try {
    await image.decode();
  } catch {
    return say(`${given.name || "this"} is no picture that this browser can show: save it as PNG or JPEG`, true);
  }
  request?.abort();
  file = given;
  $("picture").src = image.src;
  $("paint").width = image.naturalWidth;
  $("paint").height = image.naturalHeight;
  for (const id of ["stage", "tools", "options"]) $(id).hidden = false;
  $("drop").hidden = true;
  setStrokes([]);
  fit($("stage"), $("paint"));
  say(`${image.naturalWidth} × ${image.naturalHeight} pixels. Paint over what is to be filled.`);
}

/** Gives a box the proportions of its picture; the style sheet limits its size. */
function fit(box, { width, height }) {
  box.style.setProperty("--width", width);
  box.style.setProperty("--height", height);
  box.classList.toggle("small", box.clientWidth >= 3 * width);
}

$("file").addEventListener("change", () => {
  open($("file").files[0]);
  $("file").value = ""; // so that the same file can be chosen again
});
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

// ---- the brush

function setStrokes(kept) {
  strokes = kept;
  paint.clearRect(0, 0, $("paint").width, $("paint").height);
  for (const each of strokes) draw(each, 0);
  $("undo").disabled = $("clear").disabled = strokes.length === 0;
}

/** Draws a stroke from its point number `first` on. */
function draw({ size, erase, points }, first) {
  paint.globalCompositeOperation = erase ? "destination-out" : "source-over";
  paint.strokeStyle = "#ff2d6f";
  paint.lineWidth = size;
  paint.lineCap = paint.lineJoin = "round";
  paint.beginPath();
  paint.moveTo(...points[first]);
  // A line of no length would not be drawn, though a click is to leave a dot.
  for (const [x, y] of points.slice(first)) paint.lineTo(x + 0.01, y);
  paint.stroke();
}

/** Pixels of the picture per pixel of the window. */
const scale = () => $("paint").width / $("paint").clientWidth;

function place(event) {
  const box = $("paint").getBoundingClientRect();
  return [(event.clientX - box.left) * scale(), (event.clientY - box.top) * scale()];
}

function showRing(event) {
  $("ring").style = `left: ${event.offsetX}px; top: ${event.offsetY}px; width: ${$("size").value}px`;
  $("ring").hidden = false;
}

function endStroke() {
  if (!stroke) return;
  setStrokes([...strokes, stroke]);
  stroke = null;
}

const undo = () => setStrokes(strokes.slice(0, -1));
const erasing = () => $("erase").getAttribute("aria-pressed") === "true";
const toggleEraser = () => $("erase").setAttribute("aria-pressed", String(!erasing()));

$("paint").addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || stroke) return;
  $("paint").setPointerCapture(event.pointerId);
  stroke = { size: $("size").value * scale(), erase: erasing(), points: [place(event)] };
  draw(stroke, 0);
});
$("paint").addEventListener("pointermove", (event) => {
  showRing(event);
  if (!stroke) return;
  const first = stroke.points.length - 1;
  const events = event.getCoalescedEvents?.() ?? [];
  for (const each of events.length ? events : [event]) stroke.points.push(place(each));
  draw(stroke, first);
});
$("paint").addEventListener("pointerup", endStroke);
$("paint").addEventListener("pointercancel", endStroke);
$("paint").addEventListener("pointerleave", () => ($("ring").hidden = true));
$("undo").addEventListener("click", undo);
$("erase").addEventListener("click", toggleEraser);
$("clear").addEventListener("click", () => setStrokes([]));
addEventListener("keydown", (event) => {
  if (event.target.matches("input[type=number], select") || !file) return;
  if ((event.ctrlKey || event.metaKey) && event.key === "z") undo();
  else if (event.ctrlKey || event.metaKey || event.altKey) return;
  else if (event.key === "e") toggleEraser();
  else if (event.key === "[") $("size").value = $("size").value / 1.2;
  else if (event.key === "]") $("size").value = $("size").value * 1.2;
  else return;
  event.preventDefault();
});

/** The hole as a black and white PNG of the picture's size. */
function mask() {
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [$("paint").width, $("paint").height];
  const context = canvas.getContext("2d");
  context.drawImage($("paint"), 0, 0);
  for (const [operation, colour] of [["source-in", "#fff"], ["destination-over", "#000"]]) {
    context.globalCompositeOperation = operation;
    context.fillStyle = colour;
    context.fillRect(0, 0, canvas.width, canvas.height);
  }
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}

// ---- the request

/** Asks again as long as the server is busy. */
async function ask(body, signal) {
  for (;;) {
    const answer = await fetch("inpaint", { method: "POST", body, signal, headers: { Accept: "application/json" } });
    const seconds = answer.headers.get("Retry-After");
    if (!seconds) return answer;
    await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
    signal.throwIfAborted();
  }
}

$("options").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (request) return;
  if (!strokes.some((each) => !each.erase)) return say("Nothing is painted yet: paint over what is to be filled.", true);
  const current = file;
  request = new AbortController();
  $("run").disabled = true;
  $("stop").hidden = false;
  const start = Date.now();
  const seconds = () => `${((Date.now() - start) / 1000).toFixed(1)} s`;
  const clock = setInterval(() => say(`filling … ${seconds()}`), 100);
  try {
    const body = new FormData();
    body.append("image", current, "image");
    body.append("mask", await mask(), "mask.png");
    for (const name of ["num_samples", "seed", "strategy", "detail"]) body.append(name, $(name).value);
    const answer = await ask(body, request.signal);
    const content = await answer.json();
    if (!answer.ok) return say(content.error, true);
    show(content);
    say(`filled in ${seconds()}`);
  } catch (error) {
    if (error.name !== "AbortError") say(`the server cannot be reached (${error.message}): is it running?`, true);
    else if (file === current) say("stopped");
  } finally {
    clearInterval(clock);
    request = null;
    $("run").disabled = false;
    $("stop").hidden = true;
  }
});
$("stop").addEventListener("click", () => request?.abort());

// ---- the result

function show({ images, width, height }) {
  for (const fill of fills) URL.revokeObjectURL(fill.url);
  fills = images.map((text) => {
    const blob = new Blob([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))], { type: "image/png" });
    return { blob, url: URL.createObjectURL(blob) };
  });
  answered = { width, height, stem: (file.name || "picture").replace(/\.[^.]*$/, "") };
  $("before").src = $("picture").src;
  $("fills").replaceChildren(
    ...fills.map(({ url }, number) => {
      const button = document.createElement("button");
      const image = Object.assign(new Image(), { src: url, alt: "" });
      image.style.aspectRatio = `${width} / ${height}`; // so that nothing moves when it has loaded
      button.append(image, `Fill ${number + 1}`);
      button.addEventListener("click", () => choose(number));
      return button;
    }),
  );
  $("results").hidden = false;
  choose(0);
  fit($("compare"), answered);
  split();
}

function choose(number) {
  chosen = number;
  [...$("fills").children].forEach((button, other) => button.setAttribute("aria-pressed", String(other === number)));
  $("after").src = $("download").href = fills[number].url;
  $("download").download = `${answered.stem}_filled_${number + 1}.png`;
  $("caption").textContent = `Fill ${number + 1} of ${fills.length}, ${answered.width} × ${answered.height} pixels`;
}

/** Left of the line lies the picture as it was, right of it the chosen fill. */
function split() {
  const share = $("split").value / 10;
  $("after").style.clipPath = `inset(0 0 0 ${share}%)`;
  $("line").style.left = `${share}%`;
}
$("split").addEventListener("input", split);
$("onward").addEventListener("click", () => open(new File([fills[chosen].blob], `${answered.stem}.png`)));

// ---- at the start

async function describe() {
  $("docs").open = location.pathname.endsWith("/docs");
  $("curl").textContent = `curl -F image=@photo.jpg -F mask=@mask.png ${new URL("inpaint", location)} -o filled.png`;
  const [health, { paths }] = await Promise.all(["health", "openapi.json"].map(async (x) => (await fetch(x)).json()));
  const { model, image_size: size, device, version, samples } = health;
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
describe().catch(() => say("the server cannot be reached", true));
