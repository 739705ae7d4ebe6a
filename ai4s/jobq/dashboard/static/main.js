// The frame of all pages: which page the address asks for, its data every 2 s, how old they are, and what is wrong.
// A page is {title, path(), node, update(data), close()}; it is made once per address and then kept up to date in place.
// Next: overview.js, the first page.

import { get, poll } from './api.js';
import { batchPage } from './batch.js';
import { batchesPage } from './batches.js';
import { callPage } from './call.js';
import { announce } from './dialogs.js';
import { say, show } from './dom.js';
import { failedPage } from './failed.js';
import { ago, clock, duration } from './format.js';
import { hrefOf } from './links.js';
import { overviewPage } from './overview.js';
import { workersPage } from './workers.js';

const PAGES = {
  '': overviewPage,
  batches: batchesPage,
  batch: batchPage,
  call: callPage,
  workers: workersPage,
  failed: failedPage,
};
const TAB_OF = { '': 'overview', batch: 'batches', call: 'batches' };
const OLD_SECONDS = 30; // data older than this are pointed out

const byId = (id) => document.getElementById(id);
const state = { page: null, polling: null, data: null, heardAt: 0, silentSince: 0, silence: '' };

function address() {
  const [name, ...rest] = location.hash.replace(/^#\/?/, '').split('/');
  return [name, decoded(rest.join('/'))];
}

function decoded(text) {
  try {
    return decodeURIComponent(text);
  } catch {
    return text; // a stray % that somebody typed
  }
}

function open() {
  const [name, id] = address();
  state.polling?.stop();
  state.page?.close?.();
  const made = (PAGES[name] ?? overviewPage)({ id, refresh: () => state.polling?.now() });
  Object.assign(state, { page: made, data: null });
  byId('main').replaceChildren(made.node);
  document.title = `${made.title} · jobq`;
  tabs(TAB_OF[name] ?? name);
  if (state.opened) byId('main').focus({ preventScroll: true });
  if (state.opened) window.scrollTo(0, 0);
  state.opened = true;
  state.polling = poll(made.path, heard, missed);
}

function tabs(current) {
  for (const link of byId('nav').children) {
    if (link.dataset.page === current) link.setAttribute('aria-current', 'page');
    else link.removeAttribute('aria-current');
  }
}

function heard(data) {
  const before = state.silence || state.data?.problem;
  Object.assign(state, { data, heardAt: performance.now(), silence: '', silentSince: 0 });
  document.body.classList.toggle('write', Boolean(data.write));
  show(byId('mode'), data.write === false);
  say(byId('mode'), data.write === false ? 'read only' : '');
  introduce(data);
  state.page.update(data);
  if (before && !data.problem) announce('The data are fresh again.');
  status();
}

// Whose data these are: the first page's answer says it; on another page it is asked for once.
async function introduce(data) {
  if (byId('app').textContent) return;
  const known = data.app ? data : await get('/api/overview').catch(() => ({}));
  say(byId('app'), known.app ?? '');
  say(byId('place'), known.place ?? '');
}

function missed(text) {
  state.silence = text;
  state.silentSince ||= Date.now() / 1000;
  status();
}

// Seconds since the account said what this page shows, by the server's clock and ours for the time since its answer.
function age() {
  const { data, heardAt } = state;
  if (!data || (data.as_of ?? null) === null) return null;
  return data.now - data.as_of + (performance.now() - heardAt) / 1000;
}

function status() {
  const old = age();
  say(byId('age'), old === null ? 'no data yet' : `data from ${ago(old)}`);
  byId('age').classList.toggle('old', old !== null && old > OLD_SECONDS);
  const text = banner();
  show(byId('banner'), Boolean(text));
  say(byId('banner'), text);
}

function banner() {
  const { silence, silentSince, data } = state;
  if (silence) return `${silence} (since ${clock(silentSince, false)})`;
  if (!data?.problem || (data.id && !data.problem_since)) return ''; // of one thing that is not there its page tells
  const since = data.problem_since ?? data.as_of;
  const shown = data.as_of ? ` What you see is ${duration(Math.round(data.now - data.as_of))} old.` : '';
  return `Cannot reach the account${since ? ` since ${clock(since, false)}` : ''}: ${data.problem}${shown}`;
}

byId('find').addEventListener('submit', (event) => {
  event.preventDefault();
  const id = byId('find-id').value.trim();
  if (id) location.hash = hrefOf(id);
});
byId('skip').addEventListener('click', (event) => {
  event.preventDefault(); // the hash is the address of the page
  byId('main').focus();
});
window.addEventListener('hashchange', open);
setInterval(status, 1000);
open();
