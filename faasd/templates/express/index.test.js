const assert = require('node:assert');
const test = require('node:test');

const app = require('./index.js');

test('it greets', async () => {
  const server = app.listen(0, '::1');
  try {
    const answer = await fetch(`http://[::1]:${server.address().port}/?name=you`);
    assert.equal(await answer.text(), 'hello, you\n');
  } finally {
    server.close();
  }
});
