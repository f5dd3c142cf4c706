// The controls of the demo, and the two loads side by side. Below them is the page that any app can have.
import { element, number, setAttribute, setChildren, setText } from './pools/dom.js';
import { showPools } from './pools/pools.js';

const look = 500;
const find = id => document.getElementById(id);

showPools(find('pools'), 'pools/live');

async function post(path) {
  try {
    const response = await fetch(`demo/${path}`, { method: 'POST' });
    say(response.ok ? '' : `${path}: ${response.status}`);
  } catch {
    say('The demo does not answer.');
  }

  await update();
}

const say = text => setText(find('said'), text);

// What is being moved is not set from elsewhere.
const sliders = [find('callers'), find('streams')];
for (const slider of sliders) {
  slider.addEventListener('input', () => {
    showLoad();
    post(`load?callers=${sliders[0].value}&streams=${sliders[1].value}`);
  });
}

function showLoad() {
  setText(find('callers-now'), number(Number(sliders[0].value)));
  setText(find('streams-now'), `${sliders[1].value} %`);
}

find('add').addEventListener('click', () => post('servers'));
find('network').addEventListener('click', ({ currentTarget }) => post(`network/${currentTarget.ariaPressed === 'true' ? 'mend' : 'cut'}`));

const options = [...document.querySelectorAll('[data-option]')];
for (const input of options) {
  input.addEventListener('change', () => {
    if (input.checkValidity() && input.value) {
      post(`options/${input.dataset.option}?value=${input.value}`);
    } else {
      say(`${input.dataset.option}: ${input.validationMessage || 'a number is missing'}`);
    }
  });
}

const servers = new Map();

function serverOf(name) {
  const state = element('span', 'state');
  const life = element('button');
  const flow = element('button');
  const item = element('li', '', element('strong', '', name), ' ', state, ' ', life, ' ', flow);
  for (const button of [life, flow]) {
    button.type = 'button';
    button.addEventListener('click', () => post(`servers/${name}/${button.dataset.act}`));
  }

  return {
    item,

    update(server, canKill) {
      setAttribute(item, 'data-state', server.state);
      setText(state, { Up: 'up', Killed: 'killed', Hung: 'hangs' }[server.state]);
      label(life, server.state === 'Killed' ? ['restart', 'Restart'] : ['kill', 'Kill'], name);
      label(flow, server.state === 'Hung' ? ['go-on', 'Let go on'] : ['hang', 'Hang'], name);
      life.hidden = !canKill;
      flow.disabled = server.state === 'Killed';
    },
  };
}

function label(button, [act, text], name) {
  button.dataset.act = act;
  setText(button, text);
  setAttribute(button, 'aria-label', `${text} ${name}`);
}

const fixed = [
  ['calls a second', load => number(load.callsPerSecond)],
  ['failed so far', load => number(load.failed)],
  ['p50 ms', load => number(load.p50)],
  ['p99 ms', load => number(load.p99)],
].map(([name, text]) => ({ ...rowOf(name), text }));
const error = rowOf('last error');
const perServer = new Map();

function rowOf(name) {
  const cells = [element('td'), element('td')];
  return { item: element('tr', '', element('th', '', name), ...cells), cells };
}

function fill(row, bare, pool) {
  setAttribute(row.item.firstElementChild, 'scope', 'row');
  setText(row.cells[0], bare);
  setText(row.cells[1], pool);
}

function show(state) {
  for (const server of state.servers) {
    if (!servers.has(server.name)) {
      servers.set(server.name, serverOf(server.name));
      perServer.set(server.name, rowOf(`answers of ${server.name}`));
    }

    servers.get(server.name).update(server, state.canKill);
    fill(perServer.get(server.name), number(server.bare), number(server.pool));
  }

  fixed.forEach(row => fill(row, row.text(state.bare), row.text(state.pool)));
  fill(error, state.bare.lastError ?? '', state.pool.lastError ?? '');
  setChildren(find('servers'), [...servers.values()].map(server => server.item));
  setChildren(find('compared'), [...fixed, ...perServer.values(), error].map(row => row.item));

  find('add').hidden = !state.canKill;
  setAttribute(find('network'), 'aria-pressed', String(state.isCut));
  if (!sliders.includes(document.activeElement)) {
    sliders[0].value = state.callers;
    sliders[1].value = state.streamPercent;
    showLoad();
  }

  for (const input of options) {
    if (input !== document.activeElement) {
      input.value = state.options[input.dataset.option.replace('.', ':')] ?? '';
    }
  }
}

async function update() {
  try {
    const response = await fetch('demo/state', { cache: 'no-store' });
    show(await response.json());
    setAttribute(document.body, 'data-demo', 'live');
  } catch {
    setAttribute(document.body, 'data-demo', 'lost');
  }
}

await update();
setInterval(update, look);
