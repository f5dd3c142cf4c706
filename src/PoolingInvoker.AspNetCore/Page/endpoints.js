// The endpoints, with the part that each has of the calls: smoothed over some seconds, as it jumps from look to look.
import { element, number, plural, setChildren, setText } from './dom.js';

const newPart = 0.2;

export function createEndpoints() {
  const list = element('ul', 'endpoints');
  const rows = new Map();

  return {
    list,

    update(lanes) {
      const found = new Map();
      for (const lane of lanes) {
        const one = found.get(lane.endpoint) ?? { channels: 0, calls: 0 };
        found.set(lane.endpoint, { channels: one.channels + 1, calls: one.calls + lane.calls });
      }

      for (const name of rows.keys()) {
        if (!found.has(name)) {
          rows.delete(name);
        }
      }

      for (const [name, { calls }] of found) {
        const row = rows.get(name) ?? createRow(name, calls);
        row.load += newPart * (calls - row.load);
        rows.set(name, row);
      }

      const total = [...rows.values()].reduce((sum, row) => sum + row.load, 0);
      for (const [name, row] of rows) {
        row.update(found.get(name), total > 0.05 ? row.load / total : 0);
      }

      setChildren(list, [...rows.keys()].sort().map(name => rows.get(name).item));
    },
  };
}

function createRow(name, load) {
  const share = element('span', 'share');
  const fill = element('span', 'fill');
  const bar = element('span', 'bar', fill);
  const text = element('span', 'calls');
  bar.ariaHidden = 'true';

  return {
    load,
    item: element('li', 'lane', element('span', 'endpoint', name), share, bar, text),

    update({ channels, calls }, part) {
      setText(share, `${number(Math.round(100 * part))} % of calls`);
      setText(text, `${plural(channels, 'channel')}, ${plural(calls, 'call')}`);
      fill.style.transform = `scaleX(${part.toFixed(3)})`;
    },
  };
}
