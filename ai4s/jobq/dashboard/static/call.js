// One call: what became of it and why, what it was given, what it printed.

import { badgeIn, progressIn } from './bars.js';
import { actionButton } from './dialogs.js';
import { el, facts, linkIn, say, section, show } from './dom.js';
import { NONE, bytes, clock, count, duration, line } from './format.js';
import { batchHref } from './links.js';
import { logView } from './log_view.js';
import { table } from './tables.js';

const MEANINGS = {
  pending: 'no outcome yet, and no worker says that it runs: it waits, has just begun, or was never sent',
  forgotten: 'it was removed, with its outcome',
};
const RETRIED = ['failed', 'cancelled', 'expired'];
const ENDED = [...RETRIED, 'succeeded', 'forgotten'];

export function callPage({ id, refresh }) {
  const parts = {
    badge: el('span'),
    batch: el('span'),
    facts: facts(),
    progress: el('div', { class: 'call-progress' }),
    failure: el('p', { class: 'failure', dir: 'auto' }),
    trace: pre('Traceback'),
    attempts: attemptTable(),
    input: pre('Arguments'),
    value: pre('Value'),
    tail: pre('Last lines'),
    log: logView(id),
  };
  const missing = el('p', { class: 'empty', hidden: true });
  const [retry, cancel] = callButtons(id, refresh);
  const ofBatch = el('p', { class: 'quiet-text write-only' }, 'It is retried and cancelled with its batch.');
  const sections = {
    failure: section('Failure', parts.failure, parts.trace.node),
    tail: section('Last lines', parts.tail.node),
    value: section('Value', parts.value.node),
  };
  const body = el(
    'div',
    { hidden: true },
    section(
      'State',
      el('p', { class: 'row' }, parts.badge, parts.batch),
      parts.progress,
      parts.facts.node,
      el('div', { class: 'row write-only' }, retry, cancel),
      ofBatch,
    ),
    sections.failure,
    section('Attempts', parts.attempts.node),
    section('Arguments', parts.input.node),
    sections.value,
    sections.tail,
    section('Log', parts.log.node),
  );
  const node = el('div', {}, el('h1', { dir: 'auto', class: 'id' }, `Call ${line(id, 80)}`), missing, body);

  function update(data) {
    const known = Boolean(data.state) && data.state !== 'unknown';
    show(missing, !known);
    show(body, known);
    show(ofBatch, Boolean(data.batch));
    show(retry, !data.batch && RETRIED.includes(data.state));
    show(cancel, !data.batch && !ENDED.includes(data.state));
    if (known) fill(parts, sections, data);
    else say(missing, data.problem ?? 'Reading …');
  }

  return { title: `Call ${line(id, 40)}`, path: () => `/api/call/${encodeURIComponent(id)}`, node, update, close: parts.log.close };
}

function callButtons(id, refresh) {
  const what = () => ({ ids: [id] });
  const ask = () => ({
    title: 'Cancel this call?',
    text: `${line(id, 120)}. If it waits it will not run; if it runs it is told to stop.`,
    verb: 'Cancel the call',
  });
  return [
    actionButton({ action: 'retry', label: 'Retry', what, past: 'Retried', after: refresh }),
    actionButton({ action: 'cancel', label: 'Cancel call', what, past: 'Cancelled', after: refresh, ask, danger: true }),
  ];
}

// A text as it is, in a frame of its own that scrolls.
function pre(label) {
  const text = el('pre', { dir: 'auto' });
  const node = el('div', { class: 'text', role: 'region', 'aria-label': label, tabindex: '0' }, text);
  return { node, update: (content) => say(text, content || NONE) };
}

// A value as the server could show it without making it: as text, or by the strings in it.
function shown(value) {
  if (!value || typeof value === 'string') return value;
  return [value.text, ...(value.strings ?? []).map((each) => `  ${each}`)].filter(Boolean).join('\n');
}

function fill(parts, sections, data) {
  badgeIn(parts.badge, data.state);
  show(parts.batch, Boolean(data.batch));
  if (data.batch) linkIn(parts.batch, batchHref(data.batch), `batch ${data.batch}`);
  show(parts.progress, Boolean(data.progress));
  if (data.progress) progressIn(parts.progress, data.progress);
  const failure = data.failure;
  const saved = data.checkpoint;
  parts.facts.update([
    ['Task', data.task ?? ''],
    ['Queue', data.queue ?? ''],
    ['Worker', data.worker ?? ''],
    ['Run', (data.run ?? 1) > 1 ? count(data.run) : ''],
    ['Sent', data.sent ? clock(data.sent) : ''],
    ['Not before', data.eta ? clock(data.eta) : ''],
    [
      'Checkpoint',
      saved ? `number ${count(saved.number)}, ${bytes(saved.bytes)}${saved.saved ? `, saved ${clock(saved.saved)}` : ''}` : '',
    ],
    ['Value', data.value ? [bytes(data.value.bytes), data.value.codec].filter(Boolean).join(', ') : ''],
    ['Meaning', MEANINGS[data.state] ?? ''],
    ['So far', counted(data.budget)],
  ]);
  const ended = ENDED.includes(data.state) ? data.run : null;
  if ((parts.ended ?? ended) !== ended) parts.log.again();
  parts.ended = ended;
  show(sections.failure, Boolean(failure || data.traceback));
  say(parts.failure, failure ? line(`${failure.type ?? 'Failed'}: ${failure.message ?? ''}`, 2000) : '');
  show(parts.trace.node, Boolean(data.traceback));
  if (data.traceback) parts.trace.update(data.traceback);
  parts.attempts.update(data.attempts ?? []);
  parts.input.update(shown(data.arguments) || 'Not to be seen now: its message is with a worker, or gone.');
  show(sections.value, Boolean(data.value?.shown));
  if (data.value?.shown) parts.value.update(shown(data.value.shown));
  show(sections.tail, Boolean(data.tail) && !parts.log.hasLines()); // the log has them too, where it is still there
  if (data.tail) parts.tail.update(data.tail);
}

const counted = (budget) =>
  Object.entries(budget ?? {})
    .filter(([, n]) => n > 0)
    .map(([name, n]) => `${name}: ${count(n)}`)
    .join(', ');

function attemptTable() {
  return table({
    label: 'Attempts',
    empty: 'No attempt is recorded yet: the call waits, or its first attempt runs.',
    keyOf: ({ run, number }) => `${run ?? 1} ${number}`,
    columns: [
      { name: 'number', title: 'Attempt', number: true, value: (attempt) => attempt.number },
      { name: 'cause', title: 'How it ended', class: 'name', value: ({ cause }) => cause },
      {
        name: 'error',
        title: 'Error',
        class: 'name',
        value: ({ error }) => error,
        show: (cell, { error }) => say(cell, error ? line(error, 300) : NONE),
      },
      {
        name: 'seconds',
        title: 'Ran for',
        number: true,
        value: (attempt) => attempt.seconds,
        show: (cell, attempt) => say(cell, duration(attempt.seconds)),
      },
      {
        name: 'ended',
        title: 'Ended',
        number: true,
        value: ({ ended }) => ended,
        show: (cell, { ended }) => say(cell, clock(ended)),
      },
      { name: 'worker', title: 'Worker', value: ({ worker }) => worker },
    ],
  });
}
