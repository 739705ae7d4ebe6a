// The first page: how far, how fast, what fails, what it costs, who works.
// Next: batches.js.

import { batchTable } from './batches.js';
import { distributionChart, quantiles, throughputChart } from './charts.js';
import { actionButton } from './dialogs.js';
import { el, facts, mark, say, section, tile } from './dom.js';
import { ago, clock, compact, count, duration, kind, money, percent, plural, rate } from './format.js';
import { table } from './tables.js';

export function overviewPage({ refresh }) {
  const tiles = Object.fromEntries(
    [
      ['depth', 'Calls left'],
      ['speed', 'Throughput'],
      ['success', 'Success'],
      ['left', 'Time left'],
      ['workers', 'Workers'],
      ['cost', 'Storage cost'],
    ].map(([name, title]) => [name, tile(title)]),
  );
  const speed = throughputChart();
  const runTimes = distributionChart('Run time of calls');
  const waits = distributionChart('Time in the queue before the first start');
  const queues = queueTable(refresh);
  const places = environmentTable();
  const open = batchTable('Open batches', 'No open batch. `task.map(…)` submits one; it is listed here at once.');
  const cost = facts();
  const runNote = el('p', { class: 'quiet-text' });
  const waitNote = el('p', { class: 'quiet-text' });
  const countNote = el('p', { class: 'quiet-text' });
  const costNote = el('p', { class: 'quiet-text' });

  const node = el(
    'div',
    {},
    el('h1', { class: 'unseen' }, 'Overview'),
    el('div', { class: 'tiles' }, ...Object.values(tiles).map((part) => part.node)),
    el(
      'div',
      { class: 'columns' },
      section('Throughput', speed.node),
      el('div', { class: 'stack' }, section('Queues', queues.node, countNote), section('Workers by environment', places.node)),
    ),
    section('Open batches', open.node),
    el(
      'div',
      { class: 'columns' },
      section('Run time', runTimes.node, runNote),
      section('Time in the queue', waits.node, waitNote),
    ),
    section('Storage requests', cost.node, costNote),
  );

  function update(data) {
    tilesOf(tiles, data);
    speed.update(data.throughput);
    runTimes.update(data.run_times);
    waits.update(data.wait_times);
    queues.update(data.queues ?? []);
    say(countNote, counted(data));
    places.update(data.environments ?? []);
    open.update(data.batches ?? []);
    say(runNote, quantiles(data.run_times));
    say(waitNote, quantiles(data.wait_times));
    costFacts(cost, costNote, data.cost);
  }

  const close = () => [speed, runTimes, waits].forEach((chart) => chart.close());
  return { title: 'Overview', path: () => '/api/overview', node, update, close };
}

const sum = (items, of) => items.reduce((total, item) => total + (of(item) ?? 0), 0);

function tilesOf(tiles, { queues = [], calls_left: calls, throughput = {}, success = {}, seconds_left, environments = [], cost }) {
  const messages = sum(queues, (queue) => queue.messages);
  tiles.depth.update(
    compact(calls),
    queues.length ? `waiting or running, in ${plural(messages, 'message')} of ${plural(queues.length, 'queue')}` : 'no queue yet',
  );
  tiles.speed.update(
    rate(throughput.per_second),
    throughput.window_seconds ? `over the last ${duration(throughput.window_seconds)}` : 'as was last reported',
  );
  const tried = (success.succeeded ?? 0) + (success.failed ?? 0);
  tiles.success.update(
    tried ? percent(success.rate ?? success.succeeded / tried) : '–',
    tried ? `${compact(success.succeeded)} succeeded, ${compact(success.failed)} failed` : 'nothing has ended yet',
  );
  tiles.left.update(
    duration(seconds_left),
    (seconds_left ?? null) === null ? calls ? 'not known: nothing ends, or all that is left runs' : 'not known' : 'at the present speed',
  );
  const busy = sum(environments, (place) => place.running);
  tiles.workers.update(
    compact(sum(environments, (place) => place.workers)),
    `${count(busy)} of ${plural(
      sum(environments, (place) => place.slots),
      'slot',
    )} busy`,
  );
  const requests = cost?.total ?? sum(Object.values(cost?.requests ?? {}), (n) => n);
  tiles.cost.update(money(cost?.amount, cost?.currency), cost ? `${compact(requests)} requests` : 'no worker has reported');
}

function costFacts(cost, note, data) {
  const rows = Object.entries(data?.requests ?? {})
    .filter(([, n]) => n > 0)
    .sort(([, a], [, b]) => b - a);
  cost.update(rows.length ? rows.map(([name, n]) => [kind(name), count(n)]) : [['Requests', 'none reported yet']]);
  say(
    note,
    data ? `${money(data.amount, data.currency)} by the prices of ${data.as_of}, for the workers that still have a status` : '',
  );
}

function environmentTable() {
  return table({
    label: 'Workers by environment',
    keyOf: ({ name }) => name,
    empty: 'No worker has been seen. Start one: jobq-worker your.module:app',
    sort: 'workers',
    down: true,
    columns: [
      { name: 'name', title: 'Environment', value: ({ name }) => name || 'no name' },
      { name: 'workers', title: 'Workers', number: true, value: (place) => place.workers },
      { name: 'slots', title: 'Slots', number: true, value: (place) => place.slots },
      { name: 'running', title: 'Busy', number: true, value: (place) => place.running },
    ],
  });
}

function queueTable(refresh) {
  return table({
    label: 'Queues',
    keyOf: ({ name }) => name,
    empty: 'No queue yet. The first submitted call makes one.',
    columns: [
      { name: 'name', title: 'Queue', value: ({ name }) => name },
      { name: 'messages', title: 'Messages', number: true, value: (queue) => queue.messages },
      { name: 'calls', title: 'Calls', number: true, value: (queue) => queue.calls },
      {
        name: 'oldest',
        title: 'Oldest',
        number: true,
        value: (queue) => queue.oldest_seconds,
        show: (cell, queue) => say(cell, duration(queue.oldest_seconds)),
      },
      { name: 'state', title: 'State', value: queueState, show: (cell, queue) => say(cell, queueState(queue)) },
      { name: 'actions', title: 'Orders', class: 'write-only', show: (cell, queue) => orders(cell, queue, refresh) },
    ],
  });
}

// Queues have their turns: what stands in the table may be older than the page.
function counted({ queues = [], now }) {
  const ages = queues.map(({ as_of: at }) => ((at ?? null) === null ? Infinity : now - at));
  const oldest = Math.max(0, ...ages);
  return queues.length ? (oldest === Infinity ? 'Not all of them were counted yet.' : `Counted ${ago(oldest)}.`) : '';
}

const queueState = (queue) => (queue.paused ? 'paused' : queue.drained_at ? `open, drained at ${clock(queue.drained_at)}` : 'open');

function orders(cell, queue, refresh) {
  if (!cell.jobqGate) {
    const body = () => ({ queue: queue.name });
    const ask = () => ({ title: `Drain ${queue.name}?`, text: 'Its workers finish what they run, and end.', verb: 'Drain' });
    const gate = actionButton({ action: () => gate.dataset.action, label: 'Pause', what: body, past: 'Done', after: refresh });
    const drain = actionButton({ action: 'drain', label: 'Drain', what: body, past: `Drained ${queue.name}`, after: refresh, ask });
    drain.setAttribute('aria-label', `Drain ${queue.name}`);
    cell.jobqGate = gate;
    cell.append(el('div', { class: 'row tight' }, gate, drain));
  }
  const verb = queue.paused ? 'Resume' : 'Pause';
  // One button that changes its name, so that the focus stays when the order takes effect.
  say(cell.jobqGate, verb);
  mark(cell.jobqGate, 'data-action', verb.toLowerCase());
  mark(cell.jobqGate, 'aria-label', `${verb} ${queue.name}`);
}
