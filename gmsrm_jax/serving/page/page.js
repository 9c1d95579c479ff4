"use strict";

const $ = (id) => document.getElementById(id);
const paint = $("paint").getContext("2d");
const TRIES = 30; // how often a busy server is asked again

let file = null; // the picture as it was given; the server gets these bytes, not the browser's pixels
let strokes = []; // {size, erase, points} in pixels of the picture, so that undo can draw all but the last again
let stroke = null; // the one that is being drawn
let fills = []; // {url, blob} of the last answer
let chosen = 0;
let beforeUrl = ""; // of the picture that the fills belong to
let request = null; // AbortController of the request that runs

// ---- the picture

async function open(given) {
  if (!given) return;
  const url = URL.createObjectURL(given);
  const image = new Image();
  image.src = url;
  try {
    await image.decode();
  } catch {
    URL.revokeObjectURL(url);
    return say(`${given.name || "this"} is no picture that this browser can show: save it as PNG or JPEG`, true);
  }
  request?.abort();
  if ($("picture").src && $("picture").src !== beforeUrl) URL.revokeObjectURL($("picture").src);
  $("picture").src = url;
  file = given;
  $("paint").width = image.naturalWidth;
  $("paint").height = image.naturalHeight;
  for (const id of ["stage", "tools", "options"]) $(id).hidden = false;
  $("drop").hidden = true;
  strokes = [];
  redraw();
  fit();
  say(`${image.naturalWidth} × ${image.naturalHeight} pixels. Paint over what is to be filled.`);
}

/** Lays a box out as large as its column and two thirds of the window allow, in the picture's proportions. */
function fit() {
  const { width, height } = $("paint");
  for (const box of [$("stage"), $("compare")]) {
    const outer = box.parentElement;
    const room = outer.clientWidth - 2 * parseFloat(getComputedStyle(outer).paddingLeft);
    if (room <= 0) continue;
    const picture = box.id === "stage" ? { width, height } : fills;
    const scale = Math.min(room / picture.width, (0.68 * innerHeight) / picture.height, 12);
    box.style.width = `${picture.width * scale}px`;
    box.style.height = `${picture.height * scale}px`;
    box.classList.toggle("small", scale >= 3);
  }
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
addEventListener("resize", fit);

// ---- the brush

function redraw() {
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

function scale() {
  return $("paint").width / $("paint").clientWidth;
}

function place(event) {
  const box = $("paint").getBoundingClientRect();
  return [(event.clientX - box.left) * scale(), (event.clientY - box.top) * scale()];
}

function ring(event) {
  const box = $("stage").getBoundingClientRect();
  Object.assign($("ring").style, {
    left: `${event.clientX - box.left}px`,
    top: `${event.clientY - box.top}px`,
    width: `${$("size").value}px`,
    height: `${$("size").value}px`,
  });
  $("ring").hidden = false;
}

$("paint").addEventListener("pointerdown", (event) => {
  if (event.button !== 0 || stroke) return;
  $("paint").setPointerCapture(event.pointerId);
  const erase = $("erase").getAttribute("aria-pressed") === "true";
  stroke = { size: $("size").value * scale(), erase, points: [place(event)] };
  draw(stroke, 0);
});
$("paint").addEventListener("pointermove", (event) => {
  ring(event);
  if (!stroke) return;
  const first = stroke.points.length - 1;
  const events = event.getCoalescedEvents?.() ?? [];
  for (const each of events.length ? events : [event]) stroke.points.push(place(each));
  draw(stroke, first);
});
for (const kind of ["pointerup", "pointercancel"]) {
  $("paint").addEventListener(kind, () => {
    if (!stroke) return;
    strokes.push(stroke);
    stroke = null;
    redraw();
  });
}
$("paint").addEventListener("pointerleave", () => ($("ring").hidden = true));

function undo() {
  strokes.pop();
  redraw();
}
function toggleEraser() {
  const pressed = $("erase").getAttribute("aria-pressed") === "true";
  $("erase").setAttribute("aria-pressed", String(!pressed));
}
$("undo").addEventListener("click", undo);
$("erase").addEventListener("click", toggleEraser);
$("clear").addEventListener("click", () => {
  strokes = [];
  redraw();
});
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

function say(text, bad = false) {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
}

const pause = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));

async function ask(body, signal) {
  for (let left = TRIES; ; left--) {
    const answer = await fetch("inpaint", { method: "POST", body, signal, headers: { Accept: "application/json" } });
    if (answer.status !== 503 || !left) return answer;
    await pause(Number(answer.headers.get("Retry-After")) || 1);
    signal.throwIfAborted();
  }
}

$("options").addEventListener("submit", async (event) => {
  event.preventDefault();
  if (request) return;
  if (!strokes.some((each) => !each.erase)) return say("Nothing is painted yet: paint over what is to be filled.", true);
  const [current, own] = [file, new AbortController()];
  request = own;
  $("run").disabled = true;
  $("stop").hidden = false;
  const start = Date.now();
  const seconds = () => `${((Date.now() - start) / 1000).toFixed(1)} s`;
  const clock = setInterval(() => say(`filling … ${seconds()}`), 100);
  try {
    const body = new FormData();
    body.append("image", current, "image");
    body.append("mask", await mask(), "mask.png");
    for (const name of ["num_samples", "seed", "strategy"]) body.append(name, $(name).value);
    const answer = await ask(body, own.signal);
    const content = await answer.json();
    clearInterval(clock);
    if (!answer.ok) return say(content.error, true);
    show(content);
    say(`filled in ${seconds()}`);
  } catch (error) {
    clearInterval(clock);
    if (error.name !== "AbortError") say(`the server cannot be reached (${error.message}): is it running?`, true);
    else if (file === current) say("stopped");
  } finally {
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
  [fills.width, fills.height] = [width, height];
  if (beforeUrl && beforeUrl !== $("picture").src) URL.revokeObjectURL(beforeUrl);
  beforeUrl = $("before").src = $("picture").src;
  fills.stem = (file.name || "picture").replace(/\.[^.]*$/, "");
  $("fills").replaceChildren(
    ...fills.map(({ url }, number) => {
      const button = document.createElement("button");
      const image = document.createElement("img");
      image.src = url;
      image.alt = "";
      image.style.aspectRatio = `${width} / ${height}`; // so that nothing moves when it has loaded
      button.append(image, `Fill ${number + 1}`);
      button.addEventListener("click", () => choose(number));
      return button;
    }),
  );
  $("results").hidden = false;
  choose(0);
  fit();
  split();
}

function choose(number) {
  chosen = number;
  [...$("fills").children].forEach((button, other) => button.setAttribute("aria-pressed", String(other === number)));
  $("after").src = $("download").href = fills[number].url;
  $("download").download = `${fills.stem}_filled_${number + 1}.png`;
  $("caption").textContent = `Fill ${number + 1} of ${fills.length}, ${fills.width} × ${fills.height} pixels`;
}

/** Left of the line lies the picture as it was, right of it the chosen fill. */
function split() {
  const share = $("split").value / 10;
  $("after").style.clipPath = `inset(0 0 0 ${share}%)`;
  $("line").style.left = `${share}%`;
}
$("split").addEventListener("input", split);
$("onward").addEventListener("click", () => open(new File([fills[chosen].blob], `${fills.stem}.png`)));

// ---- at the start

$("curl").textContent = `curl -F image=@photo.jpg -F mask=@mask.png ${new URL("inpaint", location)} -o filled.png`;
fetch("health")
  .then((answer) => answer.json())
  .then(({ model, image_size, device, version, samples }) => {
    $("model").textContent = `${model}, trained at ${image_size} × ${image_size}, on ${device}, version ${version}`;
    $("num_samples").max = samples;
    $("num_samples").disabled = samples === 1;
  })
  .catch(() => say("the server cannot be reached", true));
