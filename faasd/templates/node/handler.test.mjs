import assert from 'node:assert';
import test from 'node:test';

import { handle } from './handler.mjs';

test('it greets', async () => {
  assert.equal(await handle({ method: 'GET', query: { name: 'you' } }), 'hello, you\n');
});

test('it returns what it was sent', async () => {
  assert.deepEqual(await handle({ method: 'POST', json: () => ({ a: 1 }) }), { you_sent: { a: 1 } });
});
