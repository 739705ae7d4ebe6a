// Who works, on what, and since when nobody heard of them. Next: failed.js.

import { badgeIn, progressIn } from './bars.js';
import { el, keyed, linkIn, mark, say, section, show } from './dom.js';
import { NONE, ago, bytes, count, duration, line, percent, plural, progressText, rate } from './format.js';
import { callHref } from './links.js';
import { table } from './tables.js';

const CALLS_SHOWN = 3; // of a worker's running calls, the longest first

export function workersPage() {
  const state = { workers: [], total: 0 };
  const field = el('input', {
    type: 'search',
    id: 'filter',
    placeholder: 'name, host, environment, state, queue, task',
    autocomplete: 'off',
  });
  const found = el('span', { class: 'quiet-text', role: 'status' });
  const list = workerTable();
  const filter = el(
    'form',
    { class: 'row', role: 'search', 'aria-label': 'Workers', onsubmit: (event) => event.preventDefault() },
    el('label', { for: 'filter' }, 'Filter'),
    field,
    found,
  );
  const node = el('div', {}, el('h1', {}, 'Workers'), filter, section('All workers', list.node));
  node.querySelector('h2').classList.add('unseen');

  function draw() {
    const words = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    const seen = state.workers.filter((worker) => words.every((word) => worker.words.includes(word)));
    const more = state.total > state.workers.length ? `, of which ${count(state.workers.length)} are listed` : '';
    const all = `${plural(state.total, 'worker')}${more}`;
    list.update(seen);
    say(
      list.nothing,
      state.workers.length ? 'No worker fits the filter.' : 'No worker has been seen. Start one: jobq-worker your.module:app',
    );
    say(
      found,
      words.length ? `${count(seen.length)} of ${all}` : all,
    );
  }

  field.addEventListener('input', draw);
  return {
    title: 'Workers',
    path: () => '/api/workers',
    node,
    update(data) {
      const workers = Array.isArray(data) ? data : (data.workers ?? []);
      state.total = data.total ?? workers.length;
      state.workers = workers.map((worker) => ({ ...worker, now: data.now, words: wordsOf(worker) }));
      draw();
    },
  };
}

function wordsOf({ id, host, environment, state, queues = [], calls = [], version }) {
  return [id, host, environment, state, version, ...[queues].flat(), ...calls.map(({ task }) => task)].join(' ').toLowerCase();
}

const number = (name, title, value, text) => ({
  name,
  title,
  number: true,
  value,
  show: (cell, worker) => say(cell, text(value(worker))),
});

function workerTable() {
  return table({
    label: 'Workers',
    empty: '',
    keyOf: ({ id }) => id,
    sort: 'id',
    columns: [
      { name: 'id', title: 'Worker', class: 'worker', value: ({ id }) => id, show: nameIn },
      { name: 'state', title: 'State', value: ({ state }) => state, show: (cell, { state }) => badgeIn(cell, state ?? 'unknown') },
      number('heard', 'Heard', (worker) => worker.heard_seconds, ago),
      {
        name: 'slots',
        title: 'Busy / slots',
        number: true,
        value: ({ running }) => running,
        show: (cell, { running, slots }) => say(cell, `${count(running)} / ${count(slots)}`),
      },
      number('rate', 'Rate', (worker) => worker.rate, rate),
      number(
        'cpu',
        'CPU',
        ({ cpu_percent: cpu }) => cpu,
        (cpu) => ((cpu ?? null) === null ? NONE : percent(cpu / 100)),
      ),
      number('memory', 'Memory', (worker) => worker.memory_bytes, bytes),
      number('age', 'Age', ({ started, now }) => (started ? now - started : null), duration),
      { name: 'calls', title: 'What runs', class: 'runs', show: callsIn },
      number('succeeded', 'Succeeded', (worker) => worker.succeeded, count),
      number('failed', 'Failed', (worker) => worker.failed, count),
      number('retried', 'Retried', (worker) => worker.retried, count),
      number('dead', 'Dead letters', (worker) => worker.dead, count),
      number('preempted', 'Preempted', (worker) => worker.preempted, count),
      number('lost', 'Leases lost', (worker) => worker.lost, count),
      { name: 'environment', title: 'Environment', value: ({ environment }) => environment },
      { name: 'queues', title: 'Queues', value: ({ queues }) => [queues ?? []].flat().join(', ') },
      { name: 'version', title: 'Version', value: ({ version }) => version },
    ],
  });
}

function nameIn(cell, { id, host, trouble }) {
  if (!cell.jobqParts) {
    cell.jobqParts = {
      name: el('div', { class: 'id', dir: 'auto' }),
      host: el('div', { class: 'quiet-text', dir: 'auto' }),
      trouble: el('div', { class: 'bad-text', dir: 'auto' }),
    };
    cell.append(...Object.values(cell.jobqParts));
  }
  const parts = cell.jobqParts;
  say(parts.name, line(id, 60));
  say(parts.host, line(host, 60));
  show(parts.host, Boolean(host));
  say(parts.trouble, line(trouble, 120));
  show(parts.trouble, Boolean(trouble));
}

function callsIn(cell, { calls = [], more_calls: more = 0 }) {
  const shown = calls.slice(0, CALLS_SHOWN);
  const rest = calls.length - shown.length + more;
  const items = [...shown, ...(rest ? [{ id: '', rest }] : shown.length ? [] : [{ id: '', rest: 0 }])];
  keyed(
    cell,
    items,
    ({ id }) => id,
    ({ id }) => (id ? callLine() : restLine()),
  );
}

const shortly = ({ done, total, message }) =>
  [total ? percent(done / total) : count(done), line(message, 40)].filter(Boolean).join(' ');

function restLine() {
  const node = el('div', { class: 'quiet-text' });
  return { node, update: ({ rest }) => say(node, rest ? `and ${count(rest)} more` : NONE) };
}

function callLine() {
  const name = el('span', { class: 'running-name', dir: 'auto' });
  const age = el('span', { class: 'quiet-text' });
  const progress = el('span', { class: 'running-progress' });
  const node = el('div', { class: 'running-call' }, name, age, progress);
  const update = (call) => {
    linkIn(name, callHref(call.id), line(call.task || call.id, 60));
    mark(name.firstElementChild, 'title', call.id);
    say(age, duration(call.seconds));
    show(progress, Boolean(call.progress));
    if (call.progress) progressIn(progress, call.progress, shortly);
    mark(progress, 'title', call.progress ? progressText(call.progress) : null);
  };
  return { node, update };
}
