/** The request: the picture and its hole are sent, progress is shown, and it can be cancelled. */

import { $, pngOf, say } from "./dom.js";
import { extent, maskFile } from "./hole.js";
import { state } from "./history.js";

const FIELDS = ["num_samples", "seed", "strategy", "detail"];

let limits = {}; // of the server
let running = null; // AbortController of the request that runs

export const setLimits = (given) => (limits = given);
export const cancel = () => running?.abort();
$("cancel").addEventListener("click", cancel);

/** Up to which size a picture is looked at in full size, in words. */
export function fullSize() {
  return `up to ${limits.full_side} × ${limits.full_side}`;
}
/** The model sees whole squares of `stride` pixels, so that a part of one counts as much. */
export function isTooLargeForFull({ width, height }) {
  const whole = (pixels) => Math.ceil(pixels / limits.stride) * limits.stride;
  return whole(width) * whole(height) > limits.full_side ** 2;
}
export const tooLargeForFull = ({ width, height }) =>
  `Full size takes pictures ${fullSize()}, and this one has ${width} × ${height} pixels. Choose “Automatic”.`;

/** An answer that is no result: {status, error}, in the server's words. */
class Refusal extends Error {
  constructor({ status, error }) {
    super(error);
    this.status = status;
  }
}

/** What a refusal means to somebody with a picture. */
function inWords({ status, message }, strategy) {
  const megapixels = Math.floor(limits.pixels / 1e6);
  const megabytes = Math.floor(limits.upload_bytes / 2 ** 20);
  const words = {
    400: "This file cannot be read: it is damaged, or of a kind that is not known here. Save it as PNG or JPEG.",
    408: "The picture took too long to arrive. Try again, or send a smaller one.",
    413: `This picture is too large: at most ${megapixels} million pixels and ${megabytes} MB are taken.`,
    503: "The server is being ended. Try again when it is back.",
    504: `This took more than ${limits.seconds} seconds. Choose “Automatic”, fewer versions, or a smaller picture.`,
  };
  if (status === 503 && message.includes("memory")) return "There is not enough memory for this picture. Choose “Automatic”.";
  if (status === 422 && strategy === "full") return tooLargeForFull(state().picture);
  return words[status] ?? (status >= 500 ? "The server made a mistake." : "The server does not take this picture.");
}

/** What is done now, and which share of all is done. */
function phaseInWords({ phase, ahead, sample, window: number, windows }, samples) {
  const version = samples > 1 ? `, version ${sample + 1} of ${samples}` : "";
  switch (phase) {
    case "sending":
      return ["Sending the picture"];
    case "full":
      return ["The server is full: waiting for a place"];
    case "queued":
      return [ahead === 1 ? "Waiting: one picture is before yours" : `Waiting: ${ahead} pictures are before yours`];
    case "compiling":
      return [`Getting ready for pictures of this shape, once only${version}`];
    case "detail":
      return [`Adding fine detail${version}`, (sample + 0.9) / samples];
  }
  if (!windows) return ["Starting"];
  return [`Filling part ${number + 1} of ${windows}${version}`, (sample + (0.9 * number) / windows) / samples];
}

function showPhase(step, samples) {
  const [words, share] = phaseInWords(step, samples);
  if ($("phase").textContent !== words) $("phase").textContent = words; // it is read aloud
  if (share === undefined) $("share").removeAttribute("value");
  else $("share").value = share;
}

/** Waits, and asks only how many others there are: the picture is sent again once, not every second. */
async function untilThereIsAPlace(milliseconds, signal) {
  for (let health; !health || health.waiting > health.limits.waiting; ) {
    await new Promise((resolve) => {
      setTimeout(resolve, milliseconds);
      signal.addEventListener("abort", resolve);
    });
    health = await (await fetch("health", { signal })).json();
  }
}

/** Sends, and asks again as long as the server is full; returns the last line, which is the result. */
async function ask(body, signal, show) {
  const headers = { Accept: "application/x-ndjson" };
  for (;;) {
    const answer = await fetch("inpaint", { method: "POST", body, signal, headers });
    const seconds = answer.headers.get("Retry-After");
    if (seconds && answer.status === 503) {
      show({ phase: "full" });
      await untilThereIsAPlace(1000 * seconds, signal);
      continue;
    }
    if (!answer.ok) {
      const { error } = await answer.json().catch(() => ({})); // a proxy's own refusal is no JSON
      throw new Refusal({ status: answer.status, error });
    }
    const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
    for (let kept = []; ; ) {
      const { value, done } = await reader.read();
      if (done) throw new TypeError("the answer ended before its time");
      const [end, ...begun] = value.split("\n");
      kept.push(end);
      for (const next of begun) {
        const line = JSON.parse(kept.join("")); // once per line: the last one comes in very many pieces
        kept = [next];
        if (line.error) throw new Refusal(line);
        if (line.images) return line;
        show(line);
      }
    }
  }
}

function setRunning(controller) {
  running = controller;
  document.body.classList.toggle("busy", running !== null);
  for (const id of ["rail", "strip"]) $(id).inert = running !== null;
}

/** Fills the hole; returns {files, seed, extent, seconds}, or null where it was refused or cancelled. */
export async function fill() {
  if (running) return null;
  const box = extent();
  if (!box) {
    say("Nothing is painted yet: paint over what is to be filled.", true);
    return null;
  }
  const asked = state();
  // As a number, for what is typed may be 1e3.
  const values = Object.fromEntries(FIELDS.map((name) => [name, $(name).valueAsNumber ?? $(name).value]));
  const [controller, start] = [new AbortController(), performance.now()];
  const seconds = () => `${((performance.now() - start) / 1000).toFixed(1)} s`;
  const show = (step) => showPhase(step, values.num_samples);
  setRunning(controller);
  say("");
  show({ phase: "sending" });
  const clock = setInterval(() => ($("seconds").textContent = seconds()), 100);
  $("cancel").focus();
  try {
    const body = new FormData();
    body.append("image", asked.picture.file, "image");
    body.append("mask", maskFile(), "mask.png");
    for (const name of FIELDS) body.append(name, values[name]);
    const { images, seed } = await ask(body, controller.signal, show);
    return { files: images.map(pngOf), seed, extent: box, seconds: seconds() };
  } catch (error) {
    if (state() !== asked) return null; // another picture came meanwhile, and what was said is about that
    if (error.name === "AbortError") say("Cancelled.");
    else if (error instanceof Refusal) say(inWords(error, values.strategy), true, error.message);
    else say("The server cannot be reached: is it still running?", true, "");
    return null;
  } finally {
    clearInterval(clock);
    setRunning(null);
  }
}
