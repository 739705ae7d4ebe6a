// All batches, the newest first.
// Next: batch.js, one of them.

import { barIn, ended } from './bars.js';
import { el, linkIn, say, section } from './dom.js';
import { clock, count, duration, rate } from './format.js';
import { batchHref } from './links.js';
import { table } from './tables.js';

export function batchTable(label, empty) {
  return table({
    label,
    empty,
    keyOf: ({ id }) => id,
    sort: 'sent',
    down: true,
    columns: [
      { name: 'id', title: 'Batch', value: ({ id }) => id, show: (cell, batch) => linkIn(cell, batchHref(batch.id), batch.id) },
      { name: 'task', title: 'Task', class: 'name', value: ({ task }) => task, show: (cell, { task }) => say(cell, task ?? '–') },
      { name: 'done', title: 'Done', class: 'wide', value: (batch) => (batch.calls ? ended(batch) / batch.calls : 0), show: barIn },
      { name: 'calls', title: 'Calls', number: true, value: ({ calls }) => calls },
      { name: 'failed', title: 'Failed', number: true, value: ({ failed }) => failed, show: failedIn },
      {
        name: 'rate',
        title: 'Rate',
        number: true,
        value: (batch) => batch.rate,
        show: (cell, batch) => say(cell, rate(batch.rate)),
      },
      {
        name: 'left',
        title: 'Time left',
        number: true,
        value: (batch) => batch.seconds_left,
        show: (cell, batch) => say(cell, left(batch)),
      },
      { name: 'sent', title: 'Sent', number: true, value: ({ sent }) => sent, show: (cell, { sent }) => say(cell, clock(sent)) },
      { name: 'queue', title: 'Queue', value: ({ queue }) => queue },
    ],
  });
}

const left = (batch) => (batch.calls && ended(batch) >= batch.calls ? 'done' : duration(batch.seconds_left));

function failedIn(cell, { failed }) {
  say(cell, count(failed));
  cell.classList.toggle('bad-text', failed > 0);
}

export function batchesPage() {
  const all = batchTable('Batches', 'No batch yet. `task.map(…)` submits one; it is listed here at once.');
  const note = el('p', { class: 'quiet-text' });
  const node = el('div', {}, el('h1', {}, 'Batches'), section('All batches', all.node, note));
  node.querySelector('h2').classList.add('unseen');
  return {
    title: 'Batches',
    path: () => '/api/batches',
    node,
    update(data) {
      const batches = Array.isArray(data) ? data : (data.batches ?? []);
      all.update(batches);
      say(note, data.more ? 'The listing is still being read; more batches follow.' : '');
    },
  };
}
