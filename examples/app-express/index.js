// An Express application. It does not listen: faasd brings the listener.
const fs = require('node:fs');

const express = require('express');

// The name of who called; the address where the platform knows none, or is none.
function caller(req) {
  try {
    return fs.readlinkSync(`/run/faasd-callers/${req.socket.remoteAddress}`);
  } catch {
    return req.socket.remoteAddress;
  }
}

const app = express();
app.get('/', (req, res) => res.send(`hello from express, ${caller(req)}`));
app.post('/json', express.json(), (req, res) => res.json({ you_sent: req.body }));
app.get('/stream', (req, res) => {
  for (let i = 0; i < 3; i++) res.write(`part ${i}\n`);
  res.end();
});
app.get('/fail', async () => {
  throw new Error('as it was asked to');
});

module.exports = app;
