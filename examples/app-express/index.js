// An Express application. It does not listen: faasd brings the listener.
const express = require('express');

const app = express();
app.get('/', (req, res) => res.send(`hello from express, ${req.socket.remoteAddress}`));
app.post('/json', express.json(), (req, res) => res.json({ you_sent: req.body }));
app.get('/stream', (req, res) => {
  for (let i = 0; i < 3; i++) res.write(`part ${i}\n`);
  res.end();
});
app.get('/fail', async () => {
  throw new Error('as it was asked to');
});

module.exports = app;
