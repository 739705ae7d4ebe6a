// The map of a batch's calls on a canvas: hover or arrow keys tell what a cell is, a click or Enter opens its call or looks
// closer at its calls, Esc looks back at all. The same as a table stands below it.

import { STATES } from './bars.js';
import { cellSpan, cellText, heights, layout, tallyCells } from './cells.js';
import { el, say, show } from './dom.js';
import { count } from './format.js';
import { plain } from './tables.js';

const TABLE_ROWS = 300;
const KEYS = { ArrowLeft: -1, ArrowRight: 1 };

export function callMap(openCall) {
  const canvas = el('canvas', {
    tabindex: '0',
    role: 'application',
    'aria-roledescription': 'map of calls',
    'aria-label': 'Map of the calls by state. Arrow keys move, Enter opens, Escape shows all.',
  });
  const tip = el('div', { class: 'tip', role: 'status', hidden: true });
  const back = el('button', { type: 'button', hidden: true, onclick: () => zoom(null) }, 'All calls');
  const where = el('span', { class: 'quiet-text' });
  const legend = el('ul', { class: 'legend' }, ...STATES.map((state) => el('li', {}, el('i', { class: `s-${state}` }), state)));
  const numbers = plain('States of the calls, as a table', ['calls', 'how many', 'state']);
  const table = el('details', { class: 'numbers' }, el('summary', {}, 'Table'), numbers.node);
  const box = el('div', { class: 'map' }, canvas, tip);
  const node = el('div', {}, el('div', { class: 'row' }, back, where, el('span', { class: 'spacer' }), goTo()), box, legend, table);
  let data = { calls: 0, states: [] };
  let span = null;
  let plan = null;
  let sums = null;
  let cursor = -1;

  function goTo() {
    const field = el('input', { type: 'number', min: '0', id: 'go-to', inputmode: 'numeric' });
    const open = (event) => {
      event.preventDefault();
      if (field.value !== '' && Number(field.value) < data.calls) openCall(Number(field.value));
    };
    return el(
      'form',
      { class: 'row', onsubmit: open },
      el('label', { for: 'go-to' }, 'Call number'),
      field,
      el('button', { type: 'submit' }, 'Open'),
    );
  }

  function zoom(to) {
    span = to;
    cursor = -1;
    show(tip, false);
    draw();
  }

  function draw() {
    const width = box.clientWidth;
    if (!width || !data.calls) return;
    const [first, last] = span ?? [0, data.calls - 1];
    plan = layout(first, last, width);
    sums = tallyCells(plan, data.states);
    paint(canvas, plan, sums, cursor);
    show(back, span !== null);
    const each = plan.per === 1 ? 'one cell, one call' : `one cell, ${count(plan.per)} calls`;
    say(where, `Calls ${count(first)} to ${count(last)}; ${each}`);
    if (table.open) fill();
  }

  function fill() {
    const rows = data.states
      .slice(0, TABLE_ROWS)
      .map(([first, last, state]) => [
        first === last ? count(first) : `${count(first)} to ${count(last)}`,
        count(last - first + 1),
        state,
      ]);
    if (data.states.length > TABLE_ROWS) rows.push([`and ${count(data.states.length - TABLE_ROWS)} more ranges`, '', '']);
    numbers.update(rows.length ? rows : [['all', count(data.calls), 'waiting']]);
  }

  function point(cell) {
    cursor = cell >= 0 && plan && cell < plan.cells ? cell : -1;
    show(tip, cursor >= 0);
    if (plan) paint(canvas, plan, sums, cursor);
    if (cursor < 0) return;
    say(tip, cellText(plan, sums, cursor));
    place(tip, box, plan, cursor);
  }

  function choose() {
    if (cursor < 0) return;
    const [from, to] = cellSpan(plan, cursor);
    if (from === to) openCall(from);
    else zoom([from, to]);
  }

  const under = ({ offsetX, offsetY }) =>
    Math.floor(offsetY / plan.size) * plan.columns + Math.min(plan.columns - 1, Math.floor(offsetX / plan.size));

  function key(event) {
    const step =
      KEYS[event.key] ?? (event.key === 'ArrowDown' ? plan?.columns : event.key === 'ArrowUp' ? -(plan?.columns ?? 0) : 0);
    if (event.key === 'Enter') choose();
    else if (event.key === 'Escape') zoom(null);
    else if (step) point(Math.min(plan.cells - 1, Math.max(0, cursor + step)));
    else return;
    event.preventDefault();
  }

  canvas.addEventListener('pointermove', (event) => plan && point(under(event)));
  canvas.addEventListener('pointerleave', () => point(-1));
  canvas.addEventListener('blur', () => point(-1));
  canvas.addEventListener('click', (event) => plan && (point(under(event)), choose()));
  canvas.addEventListener('keydown', (event) => plan && key(event));
  table.addEventListener('toggle', () => table.open && fill());
  document.addEventListener('jobq-theme', draw);
  const system = matchMedia('(prefers-color-scheme: dark)');
  system.addEventListener('change', draw);
  const watching = new ResizeObserver(draw);
  watching.observe(box);

  return {
    node,
    update(fresh) {
      data = fresh;
      draw();
      if (cursor >= 0) say(tip, cellText(plan, sums, cursor));
    },
    close() {
      watching.disconnect();
      document.removeEventListener('jobq-theme', draw);
      system.removeEventListener('change', draw);
    },
  };
}

function place(tip, box, plan, cell) {
  const x = (cell % plan.columns) * plan.size;
  const y = Math.floor(cell / plan.columns) * plan.size;
  const left = Math.max(0, Math.min(x, box.clientWidth - tip.offsetWidth));
  tip.style.setProperty('left', `${left}px`);
  tip.style.setProperty('top', `${y + plan.size + 6}px`);
}

function palette() {
  const style = getComputedStyle(document.documentElement);
  const dark =
    style.colorScheme === 'dark' || (style.colorScheme !== 'light' && matchMedia('(prefers-color-scheme: dark)').matches);
  const colours = Object.fromEntries(
    STATES.map((state) => [state, style.getPropertyValue(`--map-${state}-${dark ? 'dark' : 'light'}`).trim()]),
  );
  return { ...colours, cursor: dark ? '#fff' : '#000' };
}

function paint(canvas, plan, sums, cursor) {
  const scale = window.devicePixelRatio || 1;
  const [width, height] = [plan.columns * plan.size, Math.ceil(plan.cells / plan.columns) * plan.size];
  canvas.width = width * scale;
  canvas.height = height * scale;
  canvas.style.setProperty('width', `${width}px`);
  canvas.style.setProperty('height', `${height}px`);
  const pen = canvas.getContext('2d');
  pen.scale(scale, scale);
  const colours = palette();
  const side = plan.size - (plan.size > 8 ? 2 : 1);
  for (let cell = 0; cell < plan.cells; cell += 1) {
    const x = (cell % plan.columns) * plan.size;
    const y = Math.floor(cell / plan.columns) * plan.size;
    pen.fillStyle = colours.waiting;
    pen.fillRect(x, y, side, side);
    let floor = y + side;
    for (const [state, high] of heights(sums, cell, side)) {
      pen.fillStyle = colours[state];
      pen.fillRect(x, floor - high, side, high);
      floor -= high;
    }
    if (cell === cursor) {
      pen.strokeStyle = colours.cursor;
      pen.lineWidth = 2;
      pen.strokeRect(x, y, side, side);
    }
  }
}
