// The stream of frames. It says when frames have stopped to come, whatever the reason, and comes back by itself.

const longestSilence = 5_000;
const longestPause = 10_000;

export function watch(url, { onFrame, onLost }) {
  let source;
  let alarm;
  let pause = 1_000;

  function open() {
    source = new EventSource(url);
    source.onmessage = event => {
      const frame = JSON.parse(event.data);
      pause = 1_000;
      expect(Math.max(longestSilence, 4 * frame.every));
      onFrame(frame);
    };
    source.onerror = () => {
      onLost();
      clearTimeout(alarm);
      if (source.readyState === EventSource.CLOSED) {
        reopen(); // the browser has given up, as it does when it is refused
      } else {
        expect(longestSilence);
      }
    };
    expect(2 * longestSilence);
  }

  function reopen() {
    source.close();
    clearTimeout(alarm);
    alarm = setTimeout(open, pause);
    pause = Math.min(2 * pause, longestPause);
  }

  // A connection can be open and dead.
  function expect(within) {
    clearTimeout(alarm);
    alarm = setTimeout(() => {
      onLost();
      reopen();
    }, within);
  }

  open();
}
