// A function. `event` and `context` are described in docs/HANDLERS.md.
export async function handle(event, context) {
  if (event.method === 'POST') return { you_sent: event.json() };
  return `hello, ${event.query.name ?? 'world'}\n`;
}
