// Tables that keep their rows: sorted by a click on a heading, filtered, at most so many rows at first, updated in place.
// A column: {name, title, number, value(row) to sort by, show(cell, row)}; without `show` the value is said as text.

import { el, keyed, mark, say, show } from './dom.js';
import { NONE, count, line } from './format.js';

const FIRST_ROWS = 100;

export function table({ label, columns, keyOf, empty, sort = null, down = false, rows = FIRST_ROWS }) {
  const state = { sort, down, most: rows, items: [] };
  const body = el('tbody');
  const heads = columns.map((column) => heading(column, state, () => draw()));
  const grid = el('table', {}, el('caption', { class: 'unseen' }, label), el('thead', {}, el('tr', {}, ...heads)), body);
  const frame = el('div', { class: 'scroll', role: 'region', 'aria-label': label, tabindex: '0' }, grid);
  const nothing = el('p', { class: 'empty', hidden: true }, empty);
  const more = el('button', { type: 'button', hidden: true, onclick: () => draw((state.most = Infinity)) });
  const node = el('div', { class: 'table' }, frame, nothing, more);

  function draw() {
    const items = sorted(state, columns);
    keyed(body, items.slice(0, state.most), keyOf, () => row(columns));
    columns.forEach((column, at) => mark(heads[at], 'aria-sort', direction(column, state)));
    show(frame, items.length > 0);
    show(nothing, items.length === 0);
    show(more, items.length > state.most);
    say(more, `Show all ${count(items.length)}`);
  }

  return {
    node,
    nothing,
    update(items) {
      state.items = items;
      draw();
    },
  };
}

function heading(column, state, draw) {
  const cell = el('th', { scope: 'col', class: column.number ? 'number' : column.class === 'write-only' ? column.class : null });
  if (!column.value) {
    cell.append(column.title);
    return cell;
  }
  const click = () => {
    state.down = state.sort === column.name ? !state.down : Boolean(column.number);
    state.sort = column.name;
    draw();
  };
  cell.append(el('button', { type: 'button', class: 'sort', onclick: click }, column.title));
  return cell;
}

const direction = (column, state) => (column.name === state.sort ? (state.down ? 'descending' : 'ascending') : null);

function sorted({ sort, down, items }, columns) {
  const column = columns.find(({ name }) => name === sort);
  if (!column) return items;
  const sign = down ? -1 : 1;
  return items
    .map((item) => [column.value(item), item])
    .sort(([a], [b]) => compare(a, b, sign))
    .map(([, item]) => item);
}

// What is not known stands at the end, whichever way the others run.
function compare(a, b, sign) {
  const [noA, noB] = [a ?? null, b ?? null].map((x) => x === null);
  if (noA || noB) return noA - noB;
  if (typeof a === 'number' && typeof b === 'number') return sign * (a - b);
  return sign * String(a).localeCompare(String(b), 'en', { numeric: true });
}

function row(columns) {
  const cells = columns.map((column) =>
    el('td', { class: column.number ? 'number' : (column.class ?? null), dir: column.number ? null : 'auto' }),
  );
  const node = el('tr', {}, ...cells);
  const update = (item) => columns.forEach((column, at) => fill(column, cells[at], item));
  return { node, update };
}

function fill(column, cell, item) {
  if (column.show) column.show(cell, item);
  else say(cell, text(column.value(item)));
}

function text(value) {
  if (value === null || value === undefined || value === '') return NONE;
  return typeof value === 'number' ? count(value) : line(value, 300);
}

// A table without sorting, for the numbers of a chart: columns are names, rows are lists of texts.
export function plain(label, names) {
  const body = el('tbody');
  const heads = names.map((name, at) => el('th', { scope: 'col', class: at ? 'number' : null }, name));
  const grid = el('table', {}, el('caption', { class: 'unseen' }, label), el('thead', {}, el('tr', {}, ...heads)), body);
  const node = el('div', { class: 'scroll', role: 'region', 'aria-label': label, tabindex: '0' }, grid);
  const make = () => {
    const cells = names.map((_, at) => el('td', { class: at ? 'number' : null }));
    return { node: el('tr', {}, ...cells), update: ({ texts }) => cells.forEach((cell, at) => say(cell, texts[at])) };
  };
  const update = (rows) =>
    keyed(
      body,
      rows.map((texts, key) => ({ key, texts })),
      ({ key }) => key,
      make,
    );
  return { node, update };
}
