const express = require('express');

const app = express();

app.get('/', (req, res) => {
  res.type('text').send(`hello, ${req.query.name ?? 'world'}\n`);
});

app.post('/', express.json(), (req, res) => {
  res.json({ you_sent: req.body });
});

module.exports = app;
