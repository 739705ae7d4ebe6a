// The only speaker with the server. Reads are repeated every 2 s while the page is seen; the server shares one refresh among
// all who ask, so asking often costs no storage request.

const POLL_MS = 2000;

export class Unanswered extends Error {}

async function answer(response) {
  const body = await response.json().catch(() => ({}));
  if (response.ok || response.status === 404) return body;
  if (response.status === 401)
    throw new Unanswered('This browser is not let in. Open the address that `jobq … dashboard` printed.');
  throw new Unanswered(body.problem ?? `The dashboard answered ${response.status}.`);
}

export async function get(path, signal) {
  return answer(await fetch(path, { signal, headers: { Accept: 'application/json' }, cache: 'no-store' }));
}

export async function act(action, what) {
  try {
    const headers = { 'Content-Type': 'application/json', 'X-Jobq': '1' };
    return await answer(await fetch(`/api/actions/${action}`, { method: 'POST', headers, body: JSON.stringify(what) }));
  } catch (error) {
    return { done: 0, problem: reason(error) };
  }
}

function reason(error) {
  if (error instanceof Unanswered) return error.message;
  return 'The dashboard does not answer. Is `jobq … dashboard` still running?';
}

// Asks for `path()` now and every 2 s while the page is seen, until stopped. `heard(data)` gets each answer, `missed(text)`
// each failure; an answer that comes after `stop` or for an old path is dropped.
export function poll(path, heard, missed) {
  let timer = 0;
  let asking = null;

  async function ask() {
    clearTimeout(timer);
    asking?.abort();
    const mine = new AbortController();
    asking = mine;
    try {
      const data = await get(path(), mine.signal);
      if (!mine.signal.aborted) heard(data);
    } catch (error) {
      if (!mine.signal.aborted) failed(error);
    }
    if (!mine.signal.aborted && !document.hidden) timer = setTimeout(ask, POLL_MS);
  }

  function failed(error) {
    if (!(error instanceof Unanswered) && !(error instanceof TypeError)) console.error(error);
    missed(reason(error));
  }

  function seen() {
    if (document.hidden) clearTimeout(timer);
    else ask();
  }

  document.addEventListener('visibilitychange', seen);
  ask();
  return {
    now: ask,
    stop() {
      document.removeEventListener('visibilitychange', seen);
      clearTimeout(timer);
      asking?.abort();
    },
  };
}
