/** What every part of the page needs: elements, the line of words for the user, and what is remembered. */

export const $ = (id) => document.getElementById(id);

/** Tells the user something; `said` is the server's own line, for who wants to know more. */
export function say(text, bad = false, said = "") {
  $("status").textContent = text;
  $("status").classList.toggle("bad", bad);
  $("said").hidden = !said;
  $("said").open = false;
  $("words").textContent = said;
}

export const pressed = (id) => $(id).getAttribute("aria-pressed") === "true";
export const press = (id, on = !pressed(id)) => $(id).setAttribute("aria-pressed", String(on));

/** While a fill is awaited, picture and hole stay as they are. */
export const busy = () => document.body.classList.contains("busy");

/** A PNG file from its base64 text. */
export function pngOf(text) {
  return new Blob([Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0))], { type: "image/png" });
}

const KEY = "gmsrm";

/** What was remembered from the last visit; nothing where the browser does not allow it. */
export function remembered() {
  try {
    return JSON.parse(localStorage.getItem(KEY)) ?? {};
  } catch {
    return {};
  }
}

export function remember(part) {
  try {
    localStorage.setItem(KEY, JSON.stringify({ ...remembered(), ...part }));
  } catch {
    // It is a convenience: without it the page works as well.
  }
}
