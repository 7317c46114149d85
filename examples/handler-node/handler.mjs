// A function with its standard answers: text, JSON, a stream, a failure.
export async function handle(event, context) {
  if (event.path === '/json') return { you_sent: event.json() };
  if (event.path === '/stream') return (function* () { for (let i = 0; i < 3; i++) yield `part ${i}\n`; })();
  if (event.path === '/fail') throw new Error('as it was asked to');
  if (event.method === 'POST') return event.body;
  return `hello from ${context.function}, ${context.peer ?? context.client.address}\n`;
}
