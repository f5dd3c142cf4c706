// A lane for each channel. One that is gone is shown as closed for a moment.
import { duration, element, number, setAttribute, setChildren, setText } from './dom.js';

const shownClosed = 4_000;
const shownFresh = 5_000;
const unlimited = 100; // the bar of a channel without a limit is full with so many calls
const replaced = /in place of #(\d+)/;

const words = {
  Active: 'takes calls',
  Refreshing: 'is being refreshed',
  Replacing: 'is being replaced',
  Draining: 'drains',
  Closed: 'closed',
  Connecting: 'connects',
};

export function createLanes() {
  const list = element('ul', 'lanes');
  const rows = new Map();

  return {
    list,
    clear: () => rows.clear(),

    update(lanes, events, at) {
      const present = new Set(lanes.map(lane => lane.id));
      for (const [id, row] of rows) {
        if (!present.has(id)) {
          row.close(at);
          if (at - row.closedAt > shownClosed) {
            rows.delete(id);
          }
        }
      }

      for (const lane of lanes) {
        if (!rows.has(lane.id)) {
          rows.set(lane.id, createRow(lane));
        }

        rows.get(lane.id).update(lane, at);
      }

      for (const event of events) {
        rows.get(event.channel)?.note(event.text, event.kind === 'Replaced' ? at + shownFresh : 0);
        const old = event.kind === 'Replaced' && replaced.exec(event.text);
        if (old) {
          rows.get(Number(old[1]))?.note(`#${event.channel} takes its place`, 0);
        }
      }

      setChildren(list, [...rows.keys()].sort((one, other) => one - other).map(id => rows.get(id).item));
    },
  };
}

function createRow({ id }) {
  const state = element('span', 'state');
  const endpoint = element('span', 'endpoint');
  const fill = element('span', 'fill');
  const bar = element('span', 'bar', fill);
  const calls = element('span', 'calls');
  const age = element('span', 'age');
  const note = element('span', 'note');
  const error = element('span', 'error');
  const item = element('li', 'lane', element('span', 'id', `#${id}`), state, endpoint, age, bar, calls, note, error);
  bar.ariaHidden = 'true';
  let scale;
  let freshUntil = 0;

  return {
    item,
    closedAt: Infinity,

    update(lane, at) {
      if (at > freshUntil) {
        item.classList.remove('fresh');
      }

      setAttribute(item, 'data-state', lane.state);
      setText(state, words[lane.state] ?? lane.state);
      setText(endpoint, lane.endpoint);
      setText(calls, lane.capacity == null ? `${number(lane.calls)} calls, no limit` : `${number(lane.calls)} of ${number(lane.capacity)} calls`);
      setText(age, duration(lane.age));
      setText(error, lane.error ? `Last error: ${lane.error}` : '');
      this.fill(Math.min(1, lane.calls / Math.max(1, lane.capacity ?? unlimited)));
    },

    note(text, until) {
      setText(note, text);
      freshUntil = until;
      item.classList.toggle('fresh', until > 0);
    },

    close(at) {
      this.closedAt = Math.min(this.closedAt, at);
      setAttribute(item, 'data-state', 'Closed');
      setText(state, words.Closed);
      setText(calls, '');
      this.fill(0);
    },

    // A transform moves without a new layout.
    fill(part) {
      if (scale !== part) {
        scale = part;
        fill.style.transform = `scaleX(${part})`;
      }
    },
  };
}
