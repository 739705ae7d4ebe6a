// How far a batch or a call is, as a bar of its states with a text for those who do not see it, and states as badges.

import { el, mark, only, say } from './dom.js';
import { count, percent, progressText } from './format.js';

export const STATES = ['succeeded', 'failed', 'cancelled', 'expired', 'running', 'waiting', 'unknown'];

// {state: number} -> segments in the order of STATES; what waits is the empty rest.
export function stateBar() {
  const segments = new Map(STATES.filter((state) => state !== 'waiting').map((state) => [state, el('i', { class: `s-${state}` })]));
  const node = el('div', { class: 'bar', role: 'img' }, ...segments.values());
  const update = (counts, total) => {
    for (const [state, segment] of segments)
      segment.style.setProperty('width', `${total ? (100 * (counts[state] ?? 0)) / total : 0}%`);
    mark(node, 'aria-label', barText(counts, total));
    mark(node, 'title', barText(counts, total));
  };
  return { node, update };
}

function barText(counts, total) {
  const parts = STATES.filter((state) => counts[state]).map((state) => `${count(counts[state])} ${state}`);
  return `${parts.join(', ') || 'nothing yet'}, of ${count(total)}`;
}

export const ended = (batch) => (batch.succeeded ?? 0) + (batch.failed ?? 0) + (batch.cancelled ?? 0) + (batch.expired ?? 0);

// In a cell of a table: the bar, and what it comes to in figures.
export function barIn(cell, batch) {
  const box = only(cell, 'div', 'bar-cell');
  if (!box.jobqBar) {
    box.jobqBar = stateBar();
    box.append(box.jobqBar.node, el('span', { class: 'bar-text' }));
  }
  box.jobqBar.update(batch, batch.calls);
  say(box.lastElementChild, batch.calls ? percent(ended(batch) / batch.calls) : '0 %');
}

export function badgeIn(cell, state) {
  const badge = only(cell, 'span', 'badge');
  mark(badge, 'data-state', state);
  say(badge, state);
}

// `text` may say it in fewer words, where there is little room.
export function progressIn(cell, progress, text = progressText) {
  const box = only(cell, 'div', 'bar-cell');
  if (!box.jobqFill) {
    box.jobqFill = el('i', { class: 's-running' });
    box.jobqBar = el('div', { class: 'bar', 'aria-hidden': 'true' }, box.jobqFill);
    box.append(box.jobqBar, el('span', { class: 'bar-text', dir: 'auto' }));
  }
  box.jobqBar.hidden = !progress?.total;
  if (progress?.total) box.jobqFill.style.setProperty('width', `${Math.min(100, (100 * progress.done) / progress.total)}%`);
  say(box.lastElementChild, text(progress));
}
