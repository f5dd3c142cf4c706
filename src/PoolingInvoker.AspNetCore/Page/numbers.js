// The pool in numbers.
import { element, number, setText } from './dom.js';

const shown = [
  ['channels', pool => `${number(pool.now.channels)} / ${number(pool.now.most)}`],
  ['idle', pool => pool.now.idle],
  ['draining', pool => pool.now.draining],
  ['in flight', pool => pool.now.inFlight],
  ['waiting', pool => pool.now.waiting],
  ['calls/s', pool => pool.points.at(-1)?.rate],
  ['p50 ms', pool => pool.points.at(-1)?.p50],
  ['p99 ms', pool => pool.points.at(-1)?.p99],
  ['retries', pool => pool.now.retries],
  ['made', pool => pool.now.created],
  ['replaced', pool => pool.now.replaced],
  ['given up', pool => pool.now.givenUp],
  ['leaks', pool => pool.now.leaks],
];

const textOf = value => typeof value === 'string' ? value : number(value);

export function createNumbers() {
  const values = shown.map(() => element('dd'));
  const list = element('dl', 'numbers', ...shown.map(([name], index) => element('div', '', element('dt', '', name), values[index])));

  return {
    list,
    update: pool => shown.forEach(([, of], index) => setText(values[index], textOf(of(pool)))),
  };
}
