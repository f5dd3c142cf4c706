// The picture: one pool at a time, a button for each where there are several, and whether what is shown is of now.
import { createCharts } from './charts.js';
import { element, plural, setAttribute, setChildren, setText, time } from './dom.js';
import { createEndpoints } from './endpoints.js';
import { createEvents } from './events.js';
import { createLanes } from './lanes.js';
import { watch } from './live.js';
import { createModel } from './model.js';
import { createNumbers } from './numbers.js';

export function showPools(root, url) {
  const model = createModel();
  const status = element('p', 'status', 'Connecting …');
  const when = element('span', 'when');
  const pause = element('button', '', 'Pause');
  const choice = element('nav', 'choice');
  const view = element('div', 'view');
  const shown = new Map();
  let chosen;
  let paused = false;
  let last;
  let drawnAt;

  status.role = 'status';
  choice.ariaLabel = 'Pools';
  pause.type = 'button';
  pause.ariaPressed = 'false';
  pause.addEventListener('click', () => {
    paused = !paused;
    pause.ariaPressed = String(paused);
    draw();
  });
  root.classList.add('pools');
  root.append(element('div', 'bar-of-status', status, when, pause), choice, view);

  watch(url, {
    onFrame(frame) {
      model.merge(frame);
      if (frame.whole) {
        shown.forEach(picture => picture.forget());
      }

      last = frame;
      say('live', 'Live');
      draw();
    },
    onLost() {
      say('lost', last
        ? `No answer from the server since ${time(last.at)}. The numbers are old. Trying again.`
        : 'No answer from the server. Trying again.');
    },
  });

  function say(state, text) {
    setAttribute(root, 'data-state', state);
    setText(status, text);
  }

  function draw() {
    if (!last) {
      return;
    }

    if (paused) {
      setText(when, `paused; what is shown is of ${time(drawnAt)}`);
      return;
    }

    drawnAt = last.at;
    const pools = model.pools;
    const pool = pools.find(one => one.name === chosen) ?? pools[0];
    setText(when, `as of ${time(last.at)}`);
    drawChoice(pools, pool);
    if (!pool) {
      setChildren(view, [element('p', '', 'There is no pool to show: add one with AddChannelPool, or where the page is mapped.')]);
      return;
    }

    if (!shown.has(pool.name)) {
      shown.set(pool.name, createPicture(pool.name));
    }

    const picture = shown.get(pool.name);
    setChildren(view, [picture.section]);
    picture.update(pool, last);
  }

  function drawChoice(pools, current) {
    choice.hidden = pools.length < 2;
    const known = new Map([...choice.children].map(button => [button.dataset.name, button]));
    setChildren(choice, pools.map(pool => known.get(pool.name) ?? createButton(pool.name)));
    pools.forEach((pool, index) => {
      const button = choice.children[index];
      setAttribute(button, 'aria-pressed', String(pool === current));
      setText(button.lastElementChild, pool.now ? `${plural(pool.now.channels, 'channel')}, ${plural(pool.now.inFlight, 'call')}` : 'not made yet');
    });
  }

  function createButton(name) {
    const button = element('button', '', element('span', '', name), element('small'));
    button.type = 'button';
    button.dataset.name = name;
    button.addEventListener('click', () => {
      chosen = name;
      draw();
    });
    return button;
  }
}

function createPicture(name) {
  const [numbers, charts, endpoints, lanes, events] = [createNumbers(), createCharts(), createEndpoints(), createLanes(), createEvents()];
  const since = element('p', 'hint');
  const all = element(
    'div',
    '',
    numbers.list,
    charts.box,
    part('Channels', lanes.list),
    part('Endpoints', endpoints.list),
    part('Events', since, events.list));
  const absent = element('p', '', 'The pool is made with the first client, and there has been none yet.');
  const section = element('section', 'pool', element('h2', '', name), absent, all);
  events.list.ariaLabel = `Events of ${name}`;

  return {
    section,
    forget() {
      events.clear();
      lanes.clear();
    },

    update(pool, { at, every }) {
      absent.hidden = Boolean(pool.now);
      all.hidden = !pool.now;
      if (pool.now) {
        numbers.update(pool);
        charts.update(pool.points, every);
        endpoints.update(pool.lanes);
        lanes.update(pool.lanes, events.update(pool.events), at);
        setText(since, `Since ${time(pool.since)}, while somebody watched.`);
      }
    },
  };
}

function part(title, ...content) {
  return element('section', '', element('h3', '', title), ...content);
}
