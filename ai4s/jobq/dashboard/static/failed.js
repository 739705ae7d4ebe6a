// Dead letters: calls that failed for good, grouped by why, to be retried or thrown away.

import { actionButton } from './dialogs.js';
import { el, keyed, linkIn, say, section } from './dom.js';
import { NONE, clock, count, line, plural } from './format.js';
import { hrefOf } from './links.js';
import { table } from './tables.js';

export function failedPage({ refresh }) {
  const groups = groupTable(refresh);
  const letters = letterTable(refresh);
  const note = el('p', { class: 'quiet-text' });
  const node = el('div', {}, el('h1', {}, 'Dead letters'), note, section('By cause', groups.node), section('Newest', letters.node));
  return {
    title: 'Dead letters',
    path: () => '/api/failed',
    node,
    update(data) {
      groups.update(data.groups ?? []);
      letters.update(data.letters ?? []);
      say(note, summary(data));
    },
  };
}

function summary({ total, letters = [] }) {
  if (!total) return '';
  const shown = letters.length < total ? `; the newest ${count(letters.length)} are listed` : '';
  const orders = 'A retry starts the next run of a call; a purge throws the letter away, the call stays failed.';
  const batches = letters.some((letter) => letter.of_batch) ? ' A batch has one for all its failures.' : '';
  return `${plural(total, 'dead letter')}${shown}.${batches} ${orders}`;
}

const groupOf = ({ cause, task, error, batch }) => ({ cause, task, error, batch });
const keyOf = (group) => JSON.stringify([group.cause, group.task, group.error, group.batch]);
const text = (name, title, of, most = 300) => ({
  name,
  title,
  class: 'name',
  value: of,
  show: (cell, item) => say(cell, line(of(item) || NONE, most)),
});

function groupTable(refresh) {
  return table({
    label: 'Dead letters by cause',
    empty: 'No dead letters. What fails for good, after all its retries, comes here.',
    keyOf,
    sort: 'count',
    down: true,
    columns: [
      text('cause', 'Cause', ({ cause }) => cause),
      text('error', 'Error', ({ error }) => error),
      text('task', 'Task', ({ task }) => task),
      { name: 'count', title: 'Calls', number: true, value: (group) => group.count },
      {
        name: 'newest',
        title: 'Newest',
        number: true,
        value: ({ newest }) => newest,
        show: (cell, { newest }) => say(cell, clock(newest)),
      },
      { name: 'ids', title: 'For example', show: samplesIn },
      { name: 'actions', title: 'Orders', class: 'write-only', show: (cell, group) => groupOrders(cell, group, refresh) },
    ],
  });
}

function samplesIn(cell, { ids = [] }) {
  keyed(
    cell,
    ids.slice(0, 3),
    (id) => id,
    (id) => ({ node: el('a', { href: hrefOf(id), class: 'id sample', dir: 'auto' }, id) }),
  );
}

function groupOrders(cell, group, refresh) {
  cell.jobqGroup = group;
  if (cell.firstChild) return;
  const what = () => ({ group: groupOf(cell.jobqGroup) });
  const name = line(`${group.cause} ${group.error} ${group.task}`, 120);
  const { batch } = group;
  const ask = () => ({
    title: batch ? `Purge the dead letter of batch ${line(batch, 60)}?` : `Purge ${plural(cell.jobqGroup.count, 'dead letter')}?`,
    text: `${batch ? 'It is one for all its failures, of every kind' : name}. The calls stay failed, and can no longer be retried from here.`,
    verb: 'Purge',
  });
  const buttons = [
    actionButton({ action: 'retry', label: 'Retry', what, past: 'Retried', after: refresh }),
    actionButton({ action: 'purge', label: 'Purge', what, past: 'Purged', after: refresh, ask, danger: true }),
  ];
  for (const button of buttons) button.setAttribute('aria-label', `${button.textContent} all: ${name}`);
  cell.append(el('div', { class: 'row tight' }, ...buttons));
}

function letterTable(refresh) {
  return table({
    label: 'Newest dead letters',
    empty: 'Nothing to show.',
    keyOf: ({ id, queue }) => `${queue} ${id}`,
    sort: 'at',
    down: true,
    rows: 50,
    columns: [
      { name: 'id', title: 'Call or batch', value: ({ id }) => id, show: (cell, { id }) => linkIn(cell, hrefOf(id), id) },
      text('error', 'Error', ({ error }) => error),
      text('message', 'Message', (letter) => (letter.of_batch ? 'failures of a batch' : letter.message), 160),
      text('task', 'Task', ({ task }) => task),
      { name: 'queue', title: 'Queue', value: ({ queue }) => queue },
      { name: 'at', title: 'When', number: true, value: ({ at }) => at, show: (cell, { at }) => say(cell, clock(at)) },
      { name: 'actions', title: 'Orders', class: 'write-only', show: (cell, { id }) => letterOrders(cell, id, refresh) },
    ],
  });
}

function letterOrders(cell, id, refresh) {
  if (cell.firstChild) return;
  const what = () => ({ ids: [id] });
  const ask = () => ({
    title: 'Purge this dead letter?',
    text: `${line(id, 120)}. The call stays failed, and can no longer be retried from here.`,
    verb: 'Purge',
  });
  const buttons = [
    actionButton({ action: 'retry', label: 'Retry', what, past: 'Retried', after: refresh }),
    actionButton({ action: 'purge', label: 'Purge', what, past: 'Purged', after: refresh, ask, danger: true }),
  ];
  for (const button of buttons) button.setAttribute('aria-label', `${button.textContent} ${line(id, 80)}`);
  cell.append(el('div', { class: 'row tight' }, ...buttons));
}
