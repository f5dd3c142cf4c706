// What the pool has done, the newest first.
import { element, time } from './dom.js';

const mostShown = 200;

const words = {
  GivenUp: 'Given up',
  ConnectFailed: 'Connect failed',
  OptionsChanged: 'Options changed',
};

export function createEvents() {
  const list = element('ol', 'events');
  list.tabIndex = 0; // it scrolls
  let last = 0;

  return {
    list,

    clear() {
      list.replaceChildren();
      last = 0;
    },

    // Gives those that were not shown before.
    update(events) {
      const fresh = events.filter(event => event.number > last);
      for (const event of fresh) {
        list.prepend(itemOf(event));
      }

      last = events.at(-1)?.number ?? last;
      while (list.children.length > mostShown) {
        list.lastElementChild.remove();
      }

      return fresh;
    },
  };
}

function itemOf({ kind, channel, endpoint, text, error, at }) {
  const item = element(
    'li',
    '',
    element('time', '', time(at)),
    ' ',
    element('strong', '', `${words[kind] ?? kind}${channel ? ` #${channel}` : ''}`),
    ' ',
    element('span', 'endpoint', endpoint),
    ' ',
    element('span', 'reason', text));
  item.dataset.kind = kind;
  if (error && error !== text) {
    item.append(' ', element('span', 'error', error));
  }

  return item;
}
