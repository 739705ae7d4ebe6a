// One batch: how far it is, what its calls do, which are slow, what fails and why.
// Next: call.js, one of its calls.

import { STATES, ended, progressIn, stateBar } from './bars.js';
import { callMap } from './call_map.js';
import { curveChart, distributionChart, quantiles } from './charts.js';
import { actionButton } from './dialogs.js';
import { el, facts, keyed, linkIn, say, section, show } from './dom.js';
import { clock, count, duration, kind, line, money, percent, rate } from './format.js';
import { callHref } from './links.js';
import { table } from './tables.js';

export function batchPage({ id, refresh }) {
  const openCall = (index) => (location.hash = callHref(`${id}.${index}`));
  const parts = {
    head: facts(),
    bar: stateBar(),
    shares: el('p', { class: 'shares' }),
    map: callMap(openCall),
    curve: curveChart(),
    times: distributionChart('Run time of its calls'),
    timesNote: el('p', { class: 'quiet-text' }),
    running: runningTable(),
    slow: slowTable(),
    errors: errorTable(id, refresh),
    failed: el('p', { class: 'failed-ids' }),
    mapNote: el('p', { class: 'quiet-text' }),
    cost: facts(),
  };
  const missing = el('p', { class: 'empty', hidden: true });
  const [retry, cancel] = batchButtons(id, refresh);
  const body = el(
    'div',
    { hidden: true },
    section('Progress', parts.bar.node, parts.shares, parts.head.node, el('div', { class: 'row write-only' }, cancel)),
    section('Calls by state', parts.map.node, parts.mapNote),
    section('Failures by exception', parts.errors.node, parts.failed, el('div', { class: 'row write-only' }, retry)),
    section('Running now', parts.running.node),
    el('div', { class: 'columns' }, section('Curve', parts.curve.node), section('Run time', parts.times.node, parts.timesNote)),
    el('div', { class: 'columns' }, section('Slowest calls', parts.slow.node), section('Storage cost', parts.cost.node)),
  );
  const node = el('div', {}, el('h1', { dir: 'auto', class: 'id' }, `Batch ${line(id, 80)}`), missing, body);

  function update(data) {
    const known = (data.calls ?? null) !== null;
    show(missing, !known);
    show(body, known);
    show(retry, data.failed > 0);
    show(cancel, ended(data) < data.calls && !data.is_cancelled);
    if (known) fill(parts, flat(data), id);
    else say(missing, data.problem ?? 'No batch with this id is in this app. Was it removed, or is the id of a single call?');
  }

  const close = () => [parts.map, parts.curve, parts.times].forEach((part) => part.close());
  return { title: `Batch ${line(id, 40)}`, path: () => `/api/batch/${encodeURIComponent(id)}`, node, update, close };
}

// The calls that run are in their workers' statuses, which are younger than the log: what runs does not wait.
function flat(data) {
  const list = Array.isArray(data.running) ? data.running : (data.running_calls ?? []);
  const running = typeof data.running === 'number' ? data.running : list.length;
  return { ...data, running: list, counts: { ...data, running, waiting: Math.max(0, data.calls - ended(data) - running) } };
}

function batchButtons(id, refresh) {
  const what = () => ({ batch: id });
  const ask = () => ({
    title: `Cancel batch ${line(id, 60)}?`,
    text: 'Calls that wait will not run; calls that run are told to stop. What has ended stays.',
    verb: 'Cancel the batch',
  });
  return [
    actionButton({ action: 'retry', label: 'Retry all failures', what, past: 'Retried', after: refresh }),
    actionButton({ action: 'cancel', label: 'Cancel batch', what, past: 'Asked to cancel', after: refresh, ask, danger: true }),
  ];
}

function fill(parts, data, id) {
  const { counts } = data;
  parts.bar.update(counts, data.calls);
  sharesIn(parts.shares, counts, data.calls);
  parts.head.update([
    ['Task', data.task ?? ''],
    ['Queue', data.queue ?? ''],
    ['Sent', clock(data.sent)],
    ['Rate', rate(data.rate)],
    ['Time left', ended(counts) >= data.calls && data.calls ? 'done' : duration(data.seconds_left)],
    ['Submission', data.is_whole === false ? 'still going on' : ''],
    ['Cancelled', data.is_cancelled ? 'a cancel was asked for' : ''],
  ]);
  const now = data.running.map(({ index }) => [index, index, 'running']);
  parts.map.update({ calls: data.calls, states: [...(data.states ?? []), ...now] });
  parts.curve.update(data.points);
  parts.times.update(data.run_times);
  say(parts.timesNote, quantiles(data.run_times));
  parts.running.update(data.running.map((call) => ({ id: `${id}.${call.index}`, ...call })));
  parts.slow.update((data.slowest ?? []).map((call) => ({ id: `${id}.${call.index}`, ...call })));
  parts.errors.update(data.errors ?? []);
  samplesIn(parts.failed, { sample_ids: data.errors?.length > 1 ? data.failed_ids : [] }, id);
  say(
    parts.mapNote,
    data.states_are_exact === false ? 'Too many changes of state to show each: a cell shows the worst of its calls.' : '',
  );
  costIn(parts.cost, data.cost);
}

function sharesIn(node, counts, calls) {
  const shares = STATES.map((state) => [state, counts[state] ?? 0]).filter(([, n]) => n > 0);
  keyed(
    node,
    shares,
    ([state]) => state,
    ([state]) => {
      const text = el('span');
      const update = ([, n]) => say(text, `${count(n)} ${state} (${percent(n / calls)})`);
      return { node: el('span', { class: 'share' }, el('i', { class: `s-${state}` }), text), update };
    },
  );
}

function costIn(part, cost) {
  if (!cost) return part.update([['Cost', 'not known yet']]);
  const requests = Object.entries(cost.requests ?? {})
    .filter(([, n]) => n > 0)
    .sort(([, a], [, b]) => b - a);
  return part.update([
    ['So far', money(cost.amount, cost.currency)],
    ...requests.map(([name, n]) => [kind(name), count(n)]),
    ['Prices of', cost.as_of ?? ''],
  ]);
}

const callColumn = { name: 'id', title: 'Call', value: ({ id }) => id, show: (cell, { id }) => linkIn(cell, callHref(id), id) };
const seconds = (title) => ({
  name: 'seconds',
  title,
  number: true,
  value: (call) => call.seconds,
  show: (cell, call) => say(cell, duration(call.seconds)),
});

function runningTable() {
  return table({
    label: 'Calls that run now',
    empty: 'None of its calls is reported as running.',
    keyOf: ({ id }) => id,
    sort: 'seconds',
    down: true,
    rows: 20,
    columns: [
      callColumn,
      seconds('For'),
      { name: 'progress', title: 'Progress', class: 'wide', show: (cell, call) => progressIn(cell, call.progress) },
      { name: 'worker', title: 'Worker', value: (call) => call.worker },
    ],
  });
}

function slowTable() {
  return table({
    label: 'Slowest calls',
    empty: 'No call has ended yet.',
    keyOf: ({ id }) => id,
    sort: 'seconds',
    down: true,
    rows: 20,
    columns: [callColumn, seconds('Ran for')],
  });
}

function errorTable(batch, refresh) {
  return table({
    label: 'Failures by exception',
    empty: 'No call has failed.',
    keyOf: ({ type }) => type,
    sort: 'count',
    down: true,
    columns: [
      { name: 'type', title: 'Exception', class: 'name', value: ({ type }) => type },
      { name: 'count', title: 'Calls', number: true, value: (group) => group.count },
      { name: 'sample', title: 'For example', show: (cell, group) => samplesIn(cell, group, batch) },
      { name: 'actions', title: 'Orders', class: 'write-only', show: (cell, { type }) => retryIn(cell, type, batch, refresh) },
    ],
  });
}

function retryIn(cell, type, batch, refresh) {
  if (cell.firstChild) return;
  const button = actionButton({
    action: 'retry',
    label: 'Retry these',
    what: () => ({ batch, error: type }),
    past: 'Retried',
    after: refresh,
  });
  button.setAttribute('aria-label', `Retry the calls that failed with ${line(type, 80)}`);
  cell.append(button);
}

function samplesIn(cell, { sample_ids: ids = [] }, batch) {
  const items = ids.slice(0, 5).map((id) => (typeof id === 'number' ? `${batch}.${id}` : id));
  keyed(
    cell,
    items,
    (id) => id,
    (id) => ({ node: el('a', { href: callHref(id), class: 'id sample', dir: 'auto' }, id) }),
  );
}
