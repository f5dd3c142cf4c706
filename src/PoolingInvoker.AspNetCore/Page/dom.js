// Small ways with elements. Texts are set as texts: what a server says is never markup.

export function element(name, className = '', ...content) {
  const made = document.createElement(name);
  made.className = className;
  made.append(...content);
  return made;
}

// Sets what differs alone, so that an update costs what has changed.
export function setText(node, text) {
  if (node.textContent !== text) {
    node.textContent = text;
  }
}

export function setAttribute(node, name, value) {
  if (node.getAttribute(name) !== value) {
    node.setAttribute(name, value);
  }
}

// Makes the children those of the list, in its order, and touches none that is in its place.
export function setChildren(parent, children) {
  children.forEach((child, index) => {
    if (parent.children[index] !== child) {
      parent.insertBefore(child, parent.children[index] ?? null);
    }
  });
  while (parent.children.length > children.length) {
    parent.lastElementChild.remove();
  }
}

const whole = new Intl.NumberFormat('en', { maximumFractionDigits: 0 });
const precise = new Intl.NumberFormat('en', { maximumSignificantDigits: 3 });
const clock = new Intl.DateTimeFormat('en', { timeStyle: 'medium', hourCycle: 'h23' });

export const number = value => value == null ? '–' : Math.abs(value) < 100 ? precise.format(value) : whole.format(value);
export const time = at => clock.format(at);

export function duration(milliseconds) {
  const seconds = Math.floor(milliseconds / 1000);
  const minutes = Math.floor(seconds / 60);
  const hours = Math.floor(minutes / 60);
  return seconds < 60 ? `${seconds} s`
    : minutes < 60 ? `${minutes} min`
    : hours < 48 ? `${hours} h ${minutes % 60} min`
    : `${Math.floor(hours / 24)} d`;
}

export const plural = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;
