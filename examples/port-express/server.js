// An Express app. Node listens on [::] by itself.
const express = require('express');

const app = express();
app.use(express.json());
app.get('/', (request, response) => {
  response.send('Hello from Express.\n');
});
app.post('/echo', (request, response) => {
  response.json({ you: request.body, from: request.socket.remoteAddress });
});

const server = app.listen(process.env.PORT);
process.on('SIGTERM', () => server.close());
