// A Fastify application. It does not listen: faasd brings the listener.
import { Readable } from 'node:stream';

import Fastify from 'fastify';

const app = Fastify({ logger: { level: 'error' } });
app.get('/', async (req) => `hello from fastify, ${req.ip}`);
app.post('/json', async (req) => ({ you_sent: req.body }));
app.get('/stream', (req, reply) => reply.send(Readable.from(['part 0\n', 'part 1\n', 'part 2\n'])));
app.get('/fail', async () => {
  throw new Error('as it was asked to');
});

export default app;
