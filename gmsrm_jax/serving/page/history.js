/** The states that can be gone back to: {picture, ops, result}, none of which is ever changed in place.
 *
 * picture: {file, url, width, height, name, root}; ops: what makes its hole (see hole.js); result: the fills that are
 * shown instead of the hole (see result.js), or null.
 */

const MOST = 200;
const watchers = [];
export let states = [];
let now = -1;

export const state = () => states[now];
export const canUndo = () => now > 0;
export const canRedo = () => now < states.length - 1;

/** Calls back after every move from one state to another, with both. */
export const watch = (call) => watchers.push(call);

function move(to, before = state()) {
  now = to;
  for (const call of watchers) call(state(), before);
}

/** A new state after this one; what was undone can then no longer be redone. */
export function change(part) {
  const next = { ...state(), ...part };
  const kept = states.slice(Math.max(0, now + 2 - MOST), now + 1);
  states = [...kept, next];
  move(kept.length, kept.at(-1));
}

export const undo = () => canUndo() && move(now - 1);
export const redo = () => canRedo() && move(now + 1);

/** The newest hole of a picture. */
export const opsOf = (picture) => states.findLast((each) => each.picture === picture)?.ops ?? [];
