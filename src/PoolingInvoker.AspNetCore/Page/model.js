// What is known of the pools: the last numbers, and points and events of the last minutes.

const kept = 5 * 60_000;
const mostEvents = 200;

export function createModel() {
  let pools = new Map();

  return {
    get pools() {
      return [...pools.values()];
    },

    // A frame that is not whole adds to what is known. It may overlap with that.
    merge(frame) {
      const known = frame.whole ? new Map() : pools;
      pools = new Map(frame.pools.map(pool => {
        const before = known.get(pool.name) ?? { points: [], events: [], since: pool.points[0]?.at ?? frame.at };
        const lastPoint = before.points.at(-1)?.at ?? 0;
        const lastEvent = before.events.at(-1)?.number ?? 0;
        const points = before.points.concat(pool.points.filter(point => point.at > lastPoint));
        return [pool.name, {
          name: pool.name,
          now: pool.now,
          lanes: pool.lanes,
          since: before.since,
          points: points.slice(points.findIndex(point => point.at > frame.at - kept)),
          events: before.events.concat(pool.events.filter(event => event.number > lastEvent)).slice(-mostEvents),
        }];
      }));
    },
  };
}
