class Shop {
  checkout(n) { return descend(n); }
}
function descend(n) {
  if (n > 0) return descend(n - 1);
  require('fs').writeSync(1, 'ready\n');
  return Atomics.wait(new Int32Array(new SharedArrayBuffer(4)), 0, 0);
}
const handler = () => new Shop().checkout(2);
setTimeout(handler, 1);
