// Numbers with units, in words that line up. A number that is not known is a dash, never a zero.

export const NONE = '–';

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const short = new Intl.NumberFormat('en', { notation: 'compact', maximumFractionDigits: 1 });

const unknown = (value) => value === null || value === undefined || Number.isNaN(value);

export const count = (n) => (unknown(n) ? NONE : whole.format(n));

export const compact = (n) => (unknown(n) ? NONE : n < 10_000_000 ? whole.format(n) : short.format(n));

export function plural(n, one, many = `${one}s`) {
  return `${count(n)} ${n === 1 ? one : many}`;
}

// Three digits that count, and no zeros at the end of a fraction.
function digits(x) {
  const text = x.toFixed(x >= 100 ? 0 : x >= 10 ? 1 : 2);
  return text.includes('.') ? text.replace(/\.?0+$/, '') : text;
}

// Seconds as people say them: at most two units.
export function duration(seconds) {
  if (unknown(seconds)) return NONE;
  if (seconds < 0.0005) return '0 s';
  if (seconds < 1) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 10) return `${digits(seconds)} s`;
  if (seconds < 60) return `${Math.round(seconds)} s`;
  if (seconds < 3600) return two(seconds, 60, 'min', 1, 's');
  if (seconds < 86_400) return two(seconds, 3600, 'h', 60, 'min');
  return two(seconds, 86_400, 'd', 3600, 'h');
}

function two(seconds, large, largeName, small, smallName) {
  const smalls = Math.round(seconds / small);
  const per = large / small;
  const rest = smalls % per;
  return `${count(Math.floor(smalls / per))} ${largeName}${rest ? ` ${rest} ${smallName}` : ''}`;
}

export const ago = (seconds) => (unknown(seconds) ? NONE : `${duration(Math.max(0, Math.round(seconds)))} ago`);

export function rate(perSecond) {
  if (unknown(perSecond)) return NONE;
  if (perSecond === 0) return '0 /s';
  if (perSecond >= 0.5) return `${perSecond >= 1000 ? whole.format(perSecond) : digits(perSecond)} /s`;
  return perSecond * 60 >= 0.5 ? `${digits(perSecond * 60)} /min` : `${digits(perSecond * 3600)} /h`;
}

export function bytes(n) {
  if (unknown(n)) return NONE;
  if (n < 1024) return `${whole.format(n)} B`;
  const units = ['KiB', 'MiB', 'GiB', 'TiB'];
  const power = Math.min(units.length, Math.floor(Math.log2(n) / 10));
  return `${digits(n / 1024 ** power)} ${units[power - 1]}`;
}

export function percent(fraction) {
  if (unknown(fraction)) return NONE;
  if (fraction > 0.999 && fraction < 1) return '> 99.9 %';
  if (fraction > 0 && fraction < 0.001) return '< 0.1 %';
  return `${digits(fraction * 100)} %`;
}

export function money(amount, currency = '') {
  if (unknown(amount)) return NONE;
  const places = amount === 0 || amount >= 1 ? 2 : 4;
  if (amount > 0 && amount < 0.0001) return `< 0.0001 ${currency}`.trim();
  return `${amount.toFixed(places)} ${currency}`.trim();
}

const pad = (n) => String(n).padStart(2, '0');

export function clock(epoch, withDay = true) {
  if (unknown(epoch)) return NONE;
  const at = new Date(epoch * 1000);
  const time = `${pad(at.getHours())}:${pad(at.getMinutes())}:${pad(at.getSeconds())}`;
  return withDay ? `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())} ${time}` : time;
}

export const kind = (name) => name.replaceAll('_', ' ');

// A text that may be of any length, for one line of a table.
export function line(text, most = 200) {
  const flat = String(text ?? '')
    .replace(/\s+/g, ' ')
    .trim();
  return flat.length > most ? `${flat.slice(0, most)} …` : flat;
}

export function progressText(progress) {
  if (!progress) return NONE;
  const { done, total, message } = progress;
  const part = total ? `${compact(done)} of ${compact(total)} (${percent(done / total)})` : `${compact(done)} done`;
  return message ? `${part}: ${line(message)}` : part;
}
