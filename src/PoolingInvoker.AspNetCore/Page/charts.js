// The last minutes, as lines. Each chart says in words what it shows.
import { element, number, setText } from './dom.js';

const minutes = 5;
const height = 130;

const shown = [
  { title: 'Calls a second', series: [['calls', 'rate', '--one']] },
  { title: 'Latency in ms', series: [['p50', 'p50', '--one'], ['p99', 'p99', '--two']], missing: 'Not measured.' },
  { title: 'Calls in the pool', series: [['in flight', 'inFlight', '--one'], ['waiting', 'waiting', '--two']] },
  { title: 'Retries a second', series: [['retries', 'retries', '--two']] },
];

export function createCharts() {
  const charts = shown.map(createChart);
  const box = element('div', 'charts', ...charts.map(chart => chart.figure));
  const redraw = () => charts.forEach(chart => chart.redraw());
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', redraw);

  return {
    box,
    update: (points, every) => charts.forEach(chart => chart.update(points, every)),
  };
}

function createChart({ title, series, missing }) {
  const words = series.map(([, , color]) => {
    const key = element('span', 'key');
    key.style.setProperty('--color', `var(${color})`);
    return { key, text: element('span') };
  });
  const canvas = element('div', 'canvas');
  canvas.ariaHidden = 'true';
  const caption = element('figcaption', '', element('strong', '', title), ...words.map(({ key, text }) => element('span', 'value', key, text)));
  const figure = element('figure', '', caption, canvas);
  let plot;
  let range = [0, 1];

  const color = name => () => getComputedStyle(figure).getPropertyValue(name);
  const axis = { stroke: color('--muted'), grid: { stroke: color('--line'), width: 1 }, ticks: { show: false }, font: '11px system-ui, sans-serif' };
  const options = {
    width: 300,
    height,
    legend: { show: false },
    cursor: { show: false },
    scales: { x: { range: () => range }, y: { range: (_, __, highest) => [0, Math.max(1, 1.1 * (highest ?? 0))] } },
    axes: [
      { ...axis, size: 24, space: 70, values: (_, seconds) => seconds.map(at => new Date(1000 * at).toTimeString().slice(0, 8)), incrs: [30, 60, 120] },
      { ...axis, size: 48, space: 28, values: (_, values) => values.map(number) },
    ],
    series: [{}, ...series.map(([, , name]) => ({ stroke: color(name), width: 1.5, points: { show: false } }))],
  };

  new ResizeObserver(([{ contentRect }]) => {
    if (contentRect.width > 0) {
      plot?.setSize({ width: Math.floor(contentRect.width), height });
    }
  }).observe(canvas);

  return {
    figure,
    redraw: () => plot?.redraw(false, true),

    update(points, every) {
      const known = series.map(([, name]) => points.filter(point => point[name] != null));
      const isMissing = missing && known.every(values => values.length === 0);
      series.forEach(([label, name], index) => {
        const highest = known[index].reduce((most, point) => Math.max(most, point[name]), 0);
        setText(words[index].text, isMissing ? (index === 0 ? missing : '') : `${label} ${number(points.at(-1)?.[name])}, highest ${number(highest)}`);
        words[index].key.hidden = isMissing;
      });
      canvas.hidden = isMissing;
      const end = (points.at(-1)?.at ?? Date.now()) / 1000;
      const first = (points[0]?.at ?? Date.now()) / 1000;
      range = [Math.max(end - 60 * minutes, Math.min(first, end - 60)), end];
      const data = dataOf(points, series.map(([, name]) => name), every);
      if (plot) {
        plot.setData(data);
      } else if (!isMissing) {
        plot = new window.uPlot({ ...options, width: Math.max(100, canvas.clientWidth) }, data, canvas);
      }
    },
  };
}

// Where nobody has watched there is a gap in the line.
function dataOf(points, names, every) {
  const data = [[], ...names.map(() => [])];
  let before;
  for (const point of points) {
    if (before && point.at - before > 4 * every) {
      data[0].push((before + every) / 1000);
      names.forEach((_, index) => data[index + 1].push(null));
    }

    before = point.at;
    data[0].push(point.at / 1000);
    names.forEach((name, index) => data[index + 1].push(point[name] ?? null));
  }

  return data;
}
