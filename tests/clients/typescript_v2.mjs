// The TypeScript SDK 2.x client on stdio, with an elicitation handler: the server asks before it replaces a folder, and obeys a no.
import { Client } from "@modelcontextprotocol/client";
import { StdioClientTransport } from "@modelcontextprotocol/client/stdio";

const [command, cwd, recipe, out, mode] = process.argv.slice(2);
const client = new Client(
  { name: "typescript-v2", version: "0" },
  { capabilities: { elicitation: { form: {} } }, versionNegotiation: { mode } },
);
let asked = "";
client.setRequestHandler("elicitation/create", async (request) => {
  asked = request.params.message;
  return { action: "accept", content: { go_on: false } };
});
await client.connect(new StdioClientTransport({ command, args: [], cwd, env: process.env }));
const { tools } = await client.listTools();
const called = await client.callTool({ name: "list_strategies", arguments: { limit: 2 } });
const refused = await client.callTool({ name: "launch_merge", arguments: { recipe, out } });
console.log(
  JSON.stringify({
    tools: tools.length,
    strategies: called.structuredContent.strategies.length,
    asked: asked.includes("exists already"),
    obeyed: refused.isError === true,
  }),
);
await client.close();
