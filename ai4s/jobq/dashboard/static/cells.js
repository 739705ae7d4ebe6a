// The sums behind the map of a batch's calls: one cell stands for one call, or for a bucket of neighbours when a batch has more
// calls than the map has room for. Pure, so that a million calls cost one walk over their ranges.

import { STATES } from './bars.js';
import { count } from './format.js';

const SIZES = [14, 12, 10, 8]; // pixels of a cell, its gap included
const MOST_ROWS = 28;
const WAITING = STATES.indexOf('waiting');

// How the calls first … last are laid out in so many pixels of width.
export function layout(first, last, width) {
  const calls = last - first + 1;
  for (const size of SIZES) {
    const columns = Math.max(1, Math.floor(width / size));
    if (calls <= columns * MOST_ROWS) return { first, calls, size, columns, per: 1, cells: calls };
  }
  const size = SIZES.at(-1);
  const columns = Math.max(1, Math.floor(width / size));
  const per = Math.ceil(calls / (columns * MOST_ROWS));
  return { first, calls, size, columns, per, cells: Math.ceil(calls / per) };
}

export const cellSpan = (plan, cell) => {
  const from = plan.first + cell * plan.per;
  return [from, Math.min(from + plan.per, plan.first + plan.calls) - 1];
};

// Per cell the number of its calls in each state, in the order of STATES; what no range names waits.
export function tallyCells(plan, ranges) {
  const sums = new Uint32Array(plan.cells * STATES.length);
  for (const [first, last, state] of ranges) addRange(sums, plan, first - plan.first, last - plan.first, STATES.indexOf(state));
  for (let cell = 0; cell < plan.cells; cell += 1) {
    const [from, to] = cellSpan(plan, cell);
    const at = cell * STATES.length;
    let known = 0;
    for (let k = 0; k < STATES.length; k += 1) known += k === WAITING ? 0 : sums[at + k];
    sums[at + WAITING] = Math.max(0, to - from + 1 - known);
  }
  return sums;
}

function addRange(sums, plan, first, last, state) {
  const from = Math.max(0, first);
  const to = Math.min(plan.calls - 1, last);
  if (state < 0) return;
  for (let at = from; at <= to;) {
    const cell = Math.floor(at / plan.per);
    const end = Math.min(to, (cell + 1) * plan.per - 1);
    sums[cell * STATES.length + state] += end - at + 1;
    at = end + 1;
  }
}

export function cellText(plan, sums, cell) {
  const [from, to] = cellSpan(plan, cell);
  const at = cell * STATES.length;
  const parts = STATES.map((state, k) => [state, sums[at + k]]).filter(([, n]) => n > 0);
  if (from === to) return `Call ${count(from)}: ${parts[0]?.[0] ?? 'waiting'}`;
  return `Calls ${count(from)} to ${count(to)}: ${parts.map(([state, n]) => `${count(n)} ${state}`).join(', ')}`;
}

// The heights of a cell's states from the bottom up, [[state, height], …]: a share of the cell each, failures never too thin
// to be seen.
const FROM_BELOW = ['failed', 'cancelled', 'expired', 'unknown', 'running', 'succeeded'];

export function heights(sums, cell, size) {
  const at = cell * STATES.length;
  let total = 0;
  for (let k = 0; k < STATES.length; k += 1) total += sums[at + k];
  const parts = [];
  let left = size;
  for (const state of FROM_BELOW) {
    const n = sums[at + STATES.indexOf(state)];
    if (!n || left <= 0) continue;
    const least = state === 'succeeded' ? 0 : 2;
    const height = Math.min(left, Math.max(least, Math.round((size * n) / total)));
    if (height > 0) parts.push([state, height]);
    left -= height;
  }
  return parts;
}
