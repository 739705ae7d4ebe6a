// Asking before what can't be undone, and saying what came of it. The browser's own dialog keeps the focus inside, closes on
// Esc and gives the focus back.

import { act } from './api.js';
import { el, say } from './dom.js';
import { count } from './format.js';

export function confirm({ title, text, verb }) {
  return new Promise((decided) => {
    const yes = el('button', { type: 'submit', value: 'yes', class: 'danger' }, verb);
    const no = el('button', { type: 'submit', value: 'no', autofocus: true }, 'Keep');
    const form = el(
      'form',
      { method: 'dialog' },
      el('h2', { id: 'ask', dir: 'auto' }, title),
      el('p', { dir: 'auto' }, text),
      el('div', { class: 'row end' }, no, yes),
    );
    const dialog = el('dialog', { 'aria-labelledby': 'ask' }, form);
    dialog.addEventListener('close', () => {
      dialog.remove();
      decided(dialog.returnValue === 'yes');
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

let fading = 0;

// For the eye at the foot of the page, and for screen readers when they have a moment.
export function announce(text, bad = false) {
  const toast = document.getElementById('toast');
  say(toast, text);
  toast.classList.toggle('bad', bad);
  clearTimeout(fading);
  fading = setTimeout(() => say(toast, ''), bad ? 20_000 : 8000);
}

// A button that does something to storage. `what()` is the body of the request, or null for nothing;
// `ask` is what to confirm; `action` may be a function where the button changes its meaning.
export function actionButton({ action, label, what, ask = null, past, after, danger = false }) {
  const button = el(
    'button',
    { type: 'button', class: danger ? 'danger' : null, 'data-action': typeof action === 'string' ? action : null },
    label,
  );
  button.addEventListener('click', async () => {
    const body = what();
    if (!body || (ask && !(await confirm(ask())))) return;
    button.disabled = true;
    const answer = await act(typeof action === 'function' ? action() : action, body);
    button.disabled = false;
    button.focus();
    announce(outcome(answer, past ?? label), Boolean(answer.problem));
    after?.();
  });
  return button;
}

function outcome({ done, problem }, past) {
  if (problem) return done ? `${past}: ${count(done)} done, then: ${problem}` : problem;
  return `${past}: ${count(done)}`;
}
