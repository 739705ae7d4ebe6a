// Elements, made and kept up to date in place. Text goes in as text only: nothing here, and nobody else, parses markup, so
// whatever a task or a user wrote is shown as it is. What has not changed is not touched: focus, scroll and selection stay.

export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith('on')) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, '');
    else if (value !== false && value !== null && value !== undefined) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

// Say this text, if the node does not say it already.
export function say(node, text) {
  if (node.textContent !== text) node.textContent = text;
  return node;
}

export function mark(node, name, value) {
  if (value === null || value === undefined || value === false) node.removeAttribute(name);
  else if (node.getAttribute(name) !== String(value)) node.setAttribute(name, value);
}

export function show(node, visible) {
  if (node.hidden === visible) node.hidden = !visible;
}

// The one child of this kind in a cell: made the first time, found again afterwards.
export function only(cell, tag, name = '') {
  const there = cell.firstElementChild;
  if (there && there.localName === tag && cell.childNodes.length === 1) return there;
  const made = el(tag, { class: name });
  cell.replaceChildren(made);
  return made;
}

export function linkIn(cell, href, text) {
  const link = only(cell, 'a', 'id');
  mark(link, 'href', href);
  mark(link, 'dir', 'auto');
  mark(link, 'title', text.length > 40 ? text.slice(0, 300) : null);
  say(link, text);
}

// Children for items, by key: `make(item)` gives {node, update(item)}. Nodes that stay are moved only if their order changed.
export function keyed(parent, items, keyOf, make) {
  const before = parent.jobqChildren ?? new Map();
  const after = new Map();
  let at = parent.firstElementChild;
  for (const item of items) {
    const key = keyOf(item);
    if (after.has(key)) continue;
    const child = before.get(key) ?? make(item);
    after.set(key, child);
    child.update?.(item);
    if (child.node === at) at = at.nextElementSibling;
    else parent.insertBefore(child.node, at);
  }
  for (const [key, child] of before) if (!after.has(key)) child.node.remove();
  parent.jobqChildren = after;
}

// A part of a page: a heading and what stands under it.
export function section(title, ...children) {
  const heading = el('h2', {}, title);
  return el('section', {}, heading, ...children);
}

// Names with what they stand for; `update` takes [[name, text], …].
export function facts() {
  const node = el('dl', { class: 'facts' });
  const make = ([name]) => {
    const value = el('dd', { dir: 'auto' });
    return { node: el('div', {}, el('dt', {}, name), value), update: ([, text]) => say(value, text) };
  };
  const update = (pairs) =>
    keyed(
      node,
      pairs.filter(([, text]) => text !== null && text !== ''),
      ([name]) => name,
      make,
    );
  return { node, update };
}

// One number in large type, with its unit and a line of explanation.
export function tile(title) {
  const value = el('div', { class: 'tile-value' });
  const note = el('div', { class: 'tile-note', dir: 'auto' });
  const node = el('div', { class: 'tile' }, el('div', { class: 'tile-title' }, title), value, note);
  const update = (text, below = '') => {
    say(value, text);
    say(note, below);
  };
  return { node, update };
}
