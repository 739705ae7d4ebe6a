// What a call printed and logged, as it comes. Lines are added at the end and old ones let go; the view follows the end only
// while the reader is there.

import { get } from './api.js';
import { el, say, show } from './dom.js';
import { clock } from './format.js';

const MOST_LINES = 5000;
const EVERY_MS = 2000;
const STREAMS = { o: 'out', e: 'err', l: 'log' };
const RECORD = /^(\d+\.\d+) ([oel]) ([^]*)$/;

export function logView(id) {
  const lines = el('div', { class: 'log-lines' });
  const node = el(
    'div',
    { class: 'text log', role: 'log', 'aria-live': 'off', 'aria-label': 'Log of the call', tabindex: '0' },
    lines,
  );
  const note = el('p', { class: 'empty' }, 'Reading the log …');
  const whole = el('div', {}, node, note);
  let after = 0;
  let timer = 0;
  let over = false;
  let closed = false;
  show(node, false);

  async function ask() {
    clearTimeout(timer);
    if (!document.hidden) await read().catch(() => null); // the frame of the page says that the server is silent
    if (!over && !closed) timer = setTimeout(ask, EVERY_MS);
  }

  async function read() {
    const answer = await get(`/api/call/${encodeURIComponent(id)}/logs?after=${after}`);
    if (closed) return;
    if ((answer.from ?? after) < after) lines.replaceChildren(); // another run: its log begins anew
    show(node, lines.childElementCount + (answer.lines ?? []).length > 0); // before its end is looked for
    add(answer.lines ?? []);
    after = answer.next ?? after;
    over = answer.ended === true && !answer.lines?.length;
    say(note, remark(answer));
  }

  function remark({ ended, problem }) {
    if (problem) return problem;
    if (lines.childElementCount) return ended ? 'The call has ended; this is all.' : '';
    return ended
      ? "It printed nothing, or its log was off (the log of a batch's calls is off unless asked for)."
      : 'Nothing printed yet.';
  }

  function add(fresh) {
    const following = node.scrollTop + node.clientHeight >= node.scrollHeight - 24;
    lines.append(...fresh.slice(-MOST_LINES).map(lineNode));
    while (lines.childElementCount > MOST_LINES) lines.firstElementChild.remove();
    if (following) node.scrollTop = node.scrollHeight;
  }

  ask();
  const close = () => {
    closed = true;
    clearTimeout(timer);
  };
  // The call runs again, or has done so meanwhile, after its log had ended: somebody has retried it.
  const again = () => {
    if (!over || closed) return;
    over = false;
    after = 0;
    lines.replaceChildren();
    ask();
  };
  return { node: whole, close, again, hasLines: () => lines.childElementCount > 0 };
}

function parsed(line) {
  if (typeof line !== 'string') return [line.at ?? line.time, line.stream, line.text];
  const found = RECORD.exec(line);
  return found ? [Number(found[1]), found[2], found[3]] : [null, '', line];
}

function lineNode(line) {
  const [at, stream, text] = parsed(line);
  const short = String(stream ?? '').slice(0, 1);
  return el(
    'div',
    { class: `log-line from-${STREAMS[short] ?? 'out'}` },
    el('span', { class: 'log-at' }, at === null ? '' : clock(at, false)),
    el('span', { class: 'log-text', dir: 'auto' }, text),
  );
}
