/** The states that can be gone back to: {picture, ops, result}, none of which is ever changed in place.
 *
 * picture: {file, url, width, height, name, root}; ops: what makes its hole (see hole.js); result: the fills that are
 * shown instead of the hole (see result.js), or null.
 */

const MOST = 200;
const watchers = [];
export let states = [];
let now = -1;
let finish = () => {};

export const state = () => states[now];
export const canUndo = () => now > 0;
export const canRedo = () => now < states.length - 1;

/** Calls back after every move from one state to another, with both. */
export const watch = (call) => watchers.push(call);

/** Names what makes a state of a line that is still being drawn: no move may lose it. */
export const finishWith = (call) => (finish = call);

function move(to, before = state()) {
  now = to;
  for (const call of watchers) call(state(), before);
}

/** A new state after this one, from a part or from what makes one; what was undone can then no longer be redone. */
export function change(part) {
  finish();
  const next = { ...state(), ...(typeof part === "function" ? part(state()) : part) };
  const kept = states.slice(Math.max(0, now + 2 - MOST), now + 1);
  states = [...kept, next];
  move(kept.length, kept.at(-1));
}

export function undo() {
  finish();
  if (canUndo()) move(now - 1);
}
export function redo() {
  finish();
  if (canRedo()) move(now + 1);
}

/** The newest hole of a picture. */
export const opsOf = (picture) => states.findLast((each) => each.picture === picture)?.ops ?? [];
