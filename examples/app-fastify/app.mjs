// A Fastify application. It does not listen: faasd brings the listener.
import fs from 'node:fs';
import { Readable } from 'node:stream';

import Fastify from 'fastify';

// The name of who called; the address where the platform knows none, or is none.
function caller(req) {
  try {
    return fs.readlinkSync(`/run/faasd-callers/${req.ip}`);
  } catch {
    return req.ip;
  }
}

const app = Fastify({ logger: { level: 'error' } });
app.get('/', async (req) => `hello from fastify, ${caller(req)}`);
app.post('/json', async (req) => ({ you_sent: req.body }));
app.get('/stream', (req, reply) => reply.send(Readable.from(['part 0\n', 'part 1\n', 'part 2\n'])));
app.get('/fail', async () => {
  throw new Error('as it was asked to');
});

export default app;
