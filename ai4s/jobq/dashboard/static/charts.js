// Charts, each with the table of its numbers. Only numbers and our own words go into a chart, never what users or tasks wrote:
// the library reads markup in its labels. Where the library is missing the tables stand open, and all else works.

import { el, say, show } from './dom.js';
import { NONE, clock, count, duration, rate } from './format.js';
import { plain } from './tables.js';

let loading = null;

// The library brings the style sheet of its maps into the page as inline style. No map is drawn here, and the page's policy
// forbids inline style: while the library loads, such an element becomes an inert one.
function library() {
  loading ??= new Promise((ready) => {
    const make = document.createElement;
    const end = (found) => {
      delete document.createElement;
      ready(found ? window.Plotly : null);
    };
    document.createElement = (name, ...rest) => make.call(document, name === 'style' ? 'template' : name, ...rest);
    const script = make.call(document, 'script');
    script.src = '/static/plotly.min.js';
    script.onload = () => end(true);
    script.onerror = () => end(false);
    document.head.append(script);
  });
  return loading;
}

function colour(name) {
  const probe = el('i', { hidden: true });
  probe.style.setProperty('color', `var(--${name})`);
  document.body.append(probe);
  const value = getComputedStyle(probe).color;
  probe.remove();
  return value;
}

function frame(height, axes) {
  const ink = colour('quiet-ink');
  const axis = { gridcolor: colour('line'), zerolinecolor: colour('line'), linecolor: colour('line'), fixedrange: true };
  return {
    height,
    margin: { l: 58, r: 10, t: 8, b: axes.x.tickangle ? 62 : 40 }, // fixed: what measures itself may not come to rest
    font: { family: 'system-ui, sans-serif', size: 12, color: ink },
    paper_bgcolor: 'rgba(0,0,0,0)',
    plot_bgcolor: 'rgba(0,0,0,0)',
    showlegend: false,
    bargap: 0.15,
    hovermode: 'x',
    xaxis: { ...axis, ...axes.x, showgrid: false },
    yaxis: { ...axis, rangemode: 'tozero', ...axes.y },
  };
}

// `draw(data)` gives {traces, axes, summary, rows}, or null where there is nothing to draw yet.
function chart({ title, names, draw, empty, height = 200 }) {
  const plot = el('div', { class: 'plot', role: 'img', 'aria-label': title, hidden: true });
  const numbers = plain(`${title}, as a table`, names);
  const table = el('details', { class: 'numbers' }, el('summary', {}, 'Table'), numbers.node);
  const nothing = el('p', { class: 'empty' }, empty);
  const node = el('figure', {}, el('figcaption', {}, title), plot, nothing, table);
  let last = null;
  let absent = false;

  async function paint(drawn) {
    const text = JSON.stringify([drawn, document.documentElement.dataset.theme]);
    if (text === last) return;
    last = text;
    plot.setAttribute('aria-label', `${title}: ${drawn.summary}`);
    const plotly = await library();
    if (!plotly) return missing();
    const options = { displayModeBar: false, responsive: true };
    if (plot.isConnected) await plotly.react(plot, drawn.traces(colour), frame(height, drawn.axes), options);
  }

  function missing() {
    absent = true;
    table.open = true;
    say(nothing, 'For the chart: pip install "ai4s-jobq[dashboard]", and start the dashboard again.');
    update(data);
  }

  function update(data) {
    const drawn = draw(data);
    show(plot, Boolean(drawn) && !absent);
    show(table, Boolean(drawn));
    show(nothing, !drawn || absent);
    if (!drawn) return;
    numbers.update(drawn.rows);
    if (!absent) paint(drawn);
  }

  let data;
  const again = () => data !== undefined && ((last = null), update(data));
  document.addEventListener('jobq-theme', again);
  const system = matchMedia('(prefers-color-scheme: dark)');
  system.addEventListener('change', again);
  return {
    node,
    update: (fresh) => update((data = fresh)),
    close() {
      document.removeEventListener('jobq-theme', again);
      system.removeEventListener('change', again);
      window.Plotly?.purge(plot);
    },
  };
}

const dates = (points) => points.map(([at]) => new Date(at * 1000));

function area(points, name, fill) {
  return (ink) => [
    {
      type: 'scatter',
      mode: 'lines',
      x: dates(points),
      y: points.map(([, y]) => y),
      name,
      line: { color: ink(fill), width: 2 },
      fill: 'tozeroy',
      fillcolor: ink(`${fill}-pale`),
    },
  ];
}

export function throughputChart() {
  return chart({
    title: 'Calls ended per second',
    height: 300,
    names: ['time', 'calls per second'],
    empty: 'No call has ended while this page looked. The curve grows as workers report.',
    draw(throughput) {
      const points = throughput?.points ?? [];
      if (points.length < 2) return null;
      return {
        traces: area(points, 'calls per second', 'good'),
        axes: { x: { type: 'date' }, y: { ticksuffix: ' /s' } },
        summary: `now ${rate(throughput.per_second)}, over ${duration(points.at(-1)[0] - points[0][0])}`,
        rows: points
          .slice(-120)
          .reverse()
          .map(([at, value]) => [clock(at, false), rate(value)]),
      };
    },
  });
}

export function curveChart() {
  return chart({
    title: 'Calls done over time',
    names: ['time', 'calls done'],
    empty: 'The curve begins with the second entry that a worker writes.',
    draw(points) {
      if (!points || points.length < 2) return null;
      return {
        traces: area(points, 'calls done', 'good'),
        axes: { x: { type: 'date' }, y: {} },
        summary: `${count(points.at(-1)[1])} done by ${clock(points.at(-1)[0])}`,
        rows: points
          .slice(-200)
          .reverse()
          .map(([at, value]) => [clock(at), count(value)]),
      };
    },
  });
}

const upTo = (bounds, at) => (at < bounds.length ? `≤ ${duration(bounds[at])}` : `> ${duration(bounds.at(-1))}`);

// A distribution in the fixed buckets, from the first that holds something to the last.
export function distributionChart(title) {
  return chart({
    title,
    names: ['up to', 'calls'],
    empty: 'No call has reported yet. Numbers come with the next status of a worker.',
    draw(times) {
      const counts = times?.counts ?? [];
      const first = counts.findIndex((n) => n > 0);
      if (first < 0) return null;
      const last = counts.findLastIndex((n) => n > 0);
      const labels = counts.slice(first, last + 1).map((_, at) => upTo(times.bounds, first + at));
      const values = counts.slice(first, last + 1);
      return {
        traces: (ink) => [{ type: 'bar', x: labels, y: values, marker: { color: ink('accent') }, name: 'calls' }],
        axes: { x: { type: 'category', tickangle: labels.length > (innerWidth > 520 ? 6 : 3) ? -45 : 0 }, y: {} },
        summary: quantiles(times),
        rows: values.map((n, at) => [labels[at], count(n)]),
      };
    },
  });
}

export function quantiles(times) {
  if (!times || (times.p50 ?? null) === null) return NONE;
  return `half within ${duration(times.p50)}, 90 % within ${duration(times.p90)}, 99 % within ${duration(times.p99)}`;
}
